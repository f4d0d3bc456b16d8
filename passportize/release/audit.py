"""Looking for anything that passportize may have left in a model."""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from passportize.errors import InvalidArgument
from passportize.layers.private_keys import private_keys

__all__ = ["AuditReport", "Findings", "is_clean"]

_OURS = "passportize"
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


@dataclass(frozen=True)
class Findings:
    """What was found. True in a condition if that is nothing.

    Attributes:
        findings: One line for each thing that must not be there.
    """

    findings: tuple[str, ...]

    @property
    def clean(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def __bool__(self) -> bool:
        return self.clean


@dataclass(frozen=True)
class AuditReport(Findings):
    """What was found of private branches in a model. True in a condition if that is nothing.

    Attributes:
        findings: One line for each trace of a private branch.
        modules: Number of modules looked at.
        saved: Whether the model as ``torch.save`` writes it was searched, too; some models cannot
            be saved whole.
    """

    modules: int
    saved: bool

    def __str__(self) -> str:
        how = "" if self.saved else "; the model cannot be saved whole, so its bytes were not read"
        if self.clean:
            return f"clean: {self.modules} modules{how}"
        return "\n".join(
            [
                f"{len(self.findings)} traces in {self.modules} modules{how}:",
                *(f"  {finding}" for finding in self.findings),
            ]
        )


def is_clean(model: nn.Module) -> AuditReport:
    """Search a model for traces of a private branch: classes, attributes, hooks, keys, saved bytes.

    >>> bool(is_clean(nn.Linear(2, 2)))
    True

    Raises:
        InvalidArgument: The argument is no module.
    """
    if not isinstance(model, nn.Module):
        raise InvalidArgument(f"is_clean: expected a torch.nn.Module, got {type(model).__name__}")
    modules = list(model.named_modules(remove_duplicate=False))
    findings: list[str] = []
    for name, module in modules:
        place = name or "(root)"
        findings += [f"{place}: {trace}" for trace in _traces(module)]
    findings += [f"state dict key {key}" for key in sorted(private_keys(model.state_dict()))]
    structure = _saved_structure(model)
    if structure is not None and any(map(_is_our_module, _modules_named(structure))):
        findings.append("torch.save of the model names passportize")
    return AuditReport(tuple(dict.fromkeys(findings)), len(modules), structure is not None)


def _traces(module: nn.Module) -> Iterator[str]:
    for base in type(module).__mro__:
        if _is_ours(base):
            yield f"is a {type(module).__name__}"
            break
    for name, value in vars(module).items():
        if name in _HOOKS:
            for hook in value.values():
                if _is_ours(_function(hook)):
                    yield f"{name} holds {getattr(_function(hook), '__qualname__', hook)}"
        elif _is_ours(type(value)):
            yield f"attribute {name} is a {type(value).__name__}"
    for name, child in module._modules.items():
        if child is not None and _is_ours(type(child)):
            yield f"submodule {name} is a {type(child).__name__}"


def _function(hook: Any) -> Any:
    """What a hook calls, out of the wrappers that torch puts around some."""
    hook = getattr(hook, "hook", hook)
    return getattr(hook, "__func__", hook)


def _is_ours(thing: Any) -> bool:
    return _is_our_module(getattr(thing, "__module__", None) or "")


def _is_our_module(name: str) -> bool:
    return name == _OURS or name.startswith(f"{_OURS}.")


class _StructurePickler(pickle.Pickler):
    """Writes what ``torch.save`` writes beside the tensors' data."""

    def persistent_id(self, obj: Any) -> str | None:
        if isinstance(obj, (torch.UntypedStorage, torch.storage.TypedStorage)):
            return "storage"
        return None


def _modules_named(structure: bytes) -> Iterator[str]:
    """The modules whose classes and functions a pickle of protocol 2 asks for."""
    for operation, argument, _ in pickletools.genops(structure):
        if operation.name == "GLOBAL":
            yield str(argument).partition(" ")[0]


def _saved_structure(model: nn.Module) -> bytes | None:
    stream = io.BytesIO()
    try:
        _StructurePickler(stream, protocol=2).dump(model)
    except Exception:  # whatever keeps a model from being saved whole is its own affair
        return None
    return stream.getvalue()
