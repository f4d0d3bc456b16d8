"""Branches that a model merges into one layer by code of its own, before it is deployed.

RepVGG, MobileOne, RepViT, FastViT and their like are trained with convolutions and norms side by
side and bring the code that makes one convolution of them. Whoever runs it has another model, which
computes the same. The released model is merged likewise then, and compared so; a merged row answers
to the vectors of each branch, if less clearly than the branch alone.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from passportize.verification.counterparts import find_partners, structure_of

__all__ = ["MergedBranches", "merged_like"]

_ANOTHER = "fuse"
_IN_PLACE = ("reparameterize", "switch_to_deploy")
_KEYS = (_ANOTHER, *_IN_PLACE)
"""Methods by which layers are merged in timm and in models that come from the papers' own code."""


@dataclass(frozen=True, eq=False)
class MergedBranches:
    """A released model whose branches were merged.

    Attributes:
        module: The model.
        parts: Weights of branches by name, and the merged one that each went into.
    """

    module: nn.Module
    parts: Mapping[str, str]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name."""
        return {name: value.detach().cpu() for name, value in self.module.state_dict().items()}

    def carrying(self, names: Iterable[str]) -> set[str]:
        """Names of the tensors here into which some released ones went."""
        return {self.parts.get(name, name) for name in names}

    def by_branch(
        self, tensors: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]
    ) -> dict[str, Tensor]:
        """Merged tensors under the name, and in the shape, of every branch.

        Args:
            tensors: By name here; a mask can be a single number.
            shapes: Those of the released tensors, by name.
        """
        found = {name: value for name, value in tensors.items() if name in shapes}
        for name, merged in self.parts.items():
            if merged in tensors and (part := _middle(tensors[merged], shapes[name])) is not None:
                found[name] = part
        return found


def merged_like(architecture: nn.Module, suspect: nn.Module) -> MergedBranches | None:
    """The released model with its branches merged, where a suspect has the tensors of that.

    Shapes alone decide, so that nothing is looked at twice.

    Args:
        architecture: The released model; left as it is.
        suspect: The suspect.

    Returns:
        None where the suspect has the released tensors, or not those of the merged model either.
    """
    if not any(hasattr(part, key) for part in architecture.modules() for key in _KEYS):
        return None
    if _corresponds(suspect, architecture):
        return None
    merged = copy.deepcopy(architecture).eval()
    prefixes: list[str] = []
    try:
        with torch.no_grad():
            _merge(merged, "", prefixes)
    except Exception:  # the model's own code
        return None
    if not prefixes or not _corresponds(suspect, merged):
        return None
    return MergedBranches(merged, _parts(architecture, merged, prefixes))


def _merge(module: nn.Module, name: str, prefixes: list[str]) -> None:
    """Merge all branches in a module, in place, by the outermost layers that can."""
    for key, child in list(module.named_children()):
        inner = f"{name}.{key}" if name else key
        method = next((known for known in _KEYS if hasattr(child, known)), None)
        if method is None:
            _merge(child, inner, prefixes)
            continue
        prefixes.append(inner)
        made = getattr(child, method)()
        if method == _ANOTHER:
            setattr(module, key, made)


def _corresponds(suspect: nn.Module, other: nn.Module) -> bool:
    """Whether each tensor of a model stands for one of another, and none is left over."""
    there, own = (structure_of(_numbers(module)) for module in (suspect, other))
    return len(find_partners(there, own)) == len(there) == len(own)


def _numbers(module: nn.Module) -> dict[str, Tensor]:
    return {name: v for name, v in module.state_dict().items() if v.is_floating_point()}


def _parts(released: nn.Module, merged: nn.Module, prefixes: list[str]) -> dict[str, str]:
    """Weights that are gone, and the only new one in their place."""
    before, after = released.state_dict(), merged.state_dict()
    found: dict[str, str] = {}
    for prefix in prefixes:
        new = [
            name
            for name, value in after.items()
            if name.startswith(f"{prefix}.") and name not in before and value.dim() > 1
        ]
        if len(new) == 1:
            gone = [name for name in before if name.startswith(f"{prefix}.") and name not in after]
            found |= {name: new[0] for name in gone if before[name].dim() > 1}
    return found


def _middle(merged: Tensor, shape: torch.Size) -> Tensor | None:
    """The part of a merged kernel where a smaller one lay; None where it lay in none."""
    if not merged.dim():
        return merged
    if merged.dim() != len(shape) or merged.shape[:2] != shape[:2]:
        return None
    for dim in range(2, len(shape)):
        rest = merged.shape[dim] - shape[dim]
        if rest < 0 or rest % 2:
            return None
        merged = merged.narrow(dim, rest // 2, shape[dim])
    return merged
