"""Which tensors of a state dict belong to private branches, told by more than their names.

A model may have a module of its own that is called ``passport``. In a live model the branches
themselves say what is theirs. A state dict is judged by what stands beside the name: a branch holds
nothing but running statistics in the shapes of its norm's own, the bottleneck of ``paper`` and a
counter. Surgery refuses a model whose own tensors look like that, so no checkpoint is ambiguous.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from torch import nn

from passportize.errors import SurgeryError
from passportize.layers.private_branch import STATISTICS, Branch

__all__ = ["STAND_IN_PREFIX", "check_own_keys", "private_keys", "private_prefixes"]

STAND_IN_PREFIX = "functional_"
"""How the names of stand-ins begin. They own no tensor, only their private branches do."""

_BRANCH = "passport"
_BOTTLENECK = ("bottleneck.0.weight", "bottleneck.2.weight")
_COUNTER = "counter._extra_state"
_OURS = {*STATISTICS, *_BOTTLENECK, _COUNTER}
# Wrappers that leave their own name out of state dicts.
_INVISIBLE = ("_checkpoint_wrapped_module.", "_fsdp_wrapped_module.")


def private_prefixes(model: nn.Module) -> set[str]:
    """What the keys of each private branch of a live model begin with, ``"bn1.passport."`` say."""
    found = set()
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, Branch):
            for invisible in ("", *_INVISIBLE):
                found.add(f"{name.replace(invisible, '') if invisible else name}.")
    return found


def private_keys(state_dict: Mapping[Any, Any]) -> set[str]:
    """The keys of a state dict that belong to private branches and not to the host.

    >>> import torch
    >>> mean = torch.zeros(3)
    >>> private_keys({"bn.running_mean": mean, "bn.passport.running_mean": mean})
    {'bn.passport.running_mean'}
    >>> private_keys({"passport.weight": mean, "passport.running_mean": mean})
    set()

    Args:
        state_dict: Values by name; what is no text is nobody's.
    """
    groups: dict[str, set[str]] = defaultdict(set)
    for key in state_dict:
        if not isinstance(key, str):
            continue
        steps = key.split(".")
        for at, step in enumerate(steps[:-1]):
            if step == _BRANCH:
                groups[".".join(steps[:at])].add(".".join(steps[at + 1 :]))
    return {
        _join(host, tail)
        for host, tails in groups.items()
        if tails <= _OURS and _fits(state_dict, host, tails)
        for tail in tails
    }


def check_own_keys(model: nn.Module) -> None:
    """Refuse a plain model whose own tensors would be taken for those of a private branch.

    Raises:
        SurgeryError: There are such tensors.
    """
    taken = sorted(private_keys(model.state_dict()))
    if taken:
        raise SurgeryError(
            f"{type(model).__name__}: its own {taken[0]!r} looks exactly like the tensor of a "
            f"private branch, so a checkpoint could not be told apart; give the module called "
            f"{_BRANCH!r} another name"
        )


def _fits(state_dict: Mapping[Any, Any], host: str, tails: set[str]) -> bool:
    """Whether what a branch would hold has the shapes that it would have."""
    shapes = {tail: getattr(state_dict[_join(host, tail)], "shape", None) for tail in tails}
    if not host.rpartition(".")[2].startswith(STAND_IN_PREFIX):
        for tail in tails.intersection(STATISTICS):
            own = state_dict.get(f"{host}.{tail}" if host else tail)
            if own is None or getattr(own, "shape", None) != shapes[tail]:
                return False
    first, second = (shapes.get(tail) for tail in _BOTTLENECK)
    if (first is None) != (second is None) or (
        first is not None and tuple(first) != tuple(reversed(second or ()))
    ):
        return False
    return _COUNTER not in tails or shapes[_COUNTER] == ()


def _join(host: str, tail: str) -> str:
    return f"{host}.{_BRANCH}.{tail}" if host else f"{_BRANCH}.{tail}"
