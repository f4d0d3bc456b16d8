"""The private branch in a training checkpoint: beside the plain state dict, never in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from passportize.errors import CheckpointError, WrongPassport
from passportize.layers.model import passport_layers, switch_of
from passportize.layers.private_keys import private_prefixes
from passportize.signature.marking import Marking

__all__ = ["TASK_KEY", "BranchRecord", "drop_private", "join_state", "part_state"]

TASK_KEY = "passport"
"""Entry of timm's ``task_state`` (``task_state_ema``) that holds the private branch."""


@dataclass(frozen=True)
class BranchRecord:
    """What a checkpoint holds of the private branches beside their tensors. No secret is in it.

    Attributes:
        marking: What is marked.
        commitment: Commitment of the passport.
    """

    marking: Marking
    commitment: str

    @classmethod
    def of(cls, model: nn.Module) -> BranchRecord:
        """The record of a passportized model."""
        switch = switch_of(model)
        branches = [layer.passport for layer in passport_layers(model).values()]
        marking = Marking(
            switch.config,
            tuple(branch.site for branch in branches),
            tuple(branch.config for branch in branches),
            {} if switch.layout is None else switch.layout.weights,
        )
        return cls(marking, switch.commitment)

    def to_json(self) -> str:
        """JSON text, which every loader of checkpoints takes."""
        record = {**self.marking.to_dict(), "commitment": self.commitment}
        return json.dumps(record, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> BranchRecord:
        """Inverse of :meth:`to_json`.

        Raises:
            CheckpointError: The text is no such record.
        """
        try:
            record = json.loads(text)
            return cls(Marking.from_dict(record), str(record["commitment"]))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"the record of the private branch in this checkpoint is damaged ({error}); use "
                "another checkpoint"
            ) from None


def part_state(
    model: nn.Module, state_dict: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Plain state dict, and what goes into ``task_state[TASK_KEY]``.

    Args:
        model: The passportized model, unwrapped.
        state_dict: Its state dict.
    """
    prefixes = tuple(private_prefixes(model))
    private = {name: value for name, value in state_dict.items() if name.startswith(prefixes)}
    plain = type(state_dict)(  # type: ignore[call-arg]
        (name, value) for name, value in state_dict.items() if name not in private
    )
    metadata = getattr(state_dict, "_metadata", None)
    if metadata is not None:
        kept = type(metadata)(
            (name, value) for name, value in metadata.items() if not f"{name}.".startswith(prefixes)
        )
        plain._metadata = kept  # type: ignore[attr-defined]
    return plain, {"tensors": private, "record": BranchRecord.of(model).to_json()}  # type: ignore[return-value]


def drop_private(model: nn.Module, state_dict: dict[str, Any], prefix: str = "") -> None:
    """Take what belongs to private branches out of a state dict, in place.

    Args:
        model: The passportized model, or a module that holds it.
        state_dict: The state dict.
        prefix: What the names of ``model`` begin with in it.
    """
    prefixes = tuple(prefix + name for name in private_prefixes(model))
    for names in (state_dict, getattr(state_dict, "_metadata", {})):
        for name in [name for name in names if f"{name}.".startswith(prefixes)]:
            del names[name]


def join_state(
    model: nn.Module, state_dict: Mapping[str, Any], branch: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Inverse of :func:`part_state`: one state dict for the passportized model.

    Args:
        model: The passportized model, unwrapped.
        state_dict: What the checkpoint holds of the model.
        branch: The entry :data:`TASK_KEY` of its task state, if any.

    Raises:
        CheckpointError: The checkpoint was made without passports.
        WrongPassport: It was made with another passport.
    """
    joined = dict(state_dict)
    switch = switch_of(model)
    if branch is None:
        prefixes = tuple(private_prefixes(model))
        expected = any(name.startswith(prefixes) for name in model.state_dict())
        if expected and not any(name.startswith(prefixes) for name in joined):
            raise CheckpointError(
                "the checkpoint to resume holds no private branch: it was made without passports. "
                "Start a new run from its weights (timm: --initial-checkpoint, not --resume)"
            )
        return joined
    record = BranchRecord.from_json(str(branch.get("record", "")))
    if record.commitment != switch.commitment:
        raise WrongPassport(
            "the checkpoint to resume was made with another passport (commitment "
            f"{record.commitment[:12]}...); use that one"
        )
    tensors = branch.get("tensors")
    if not isinstance(tensors, Mapping) or not all(
        isinstance(value, Tensor) for value in tensors.values()
    ):
        raise CheckpointError("the private branch in this checkpoint is damaged; use another one")
    joined.update(tensors)
    switch.trained = True
    return joined
