"""Channels of a model that can change places, scale and sign without changing its function.

The channels of one tensor are tied to those of others by sums, norms, gates and depthwise
convolutions: they can only move together. A *group* is a set of such bundles that lie on the same
axes in the same way, so that any permutation of them leaves the function as it is (LayerShuffle of
"Rethinking White-Box Watermarks", KDD 2023); a class of one scale can be multiplied with any factor
where it is made and divided by it where it is read (NeuronScale, SignFlip).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from passportize.alignment.channels import FIXED, Axis, ChannelLabels, Diagonal
from passportize.alignment.spaces import MatrixSpace, find_spaces
from passportize.alignment.walk import LabelWalk
from passportize.errors import TracingError
from passportize.surgery.norms import find_norms
from passportize.tracing.trace import trace_model

__all__ = ["TiedChannels", "TiedGroup", "find_tied_channels"]


@dataclass(frozen=True, eq=False)
class TiedGroup:
    """Bundles of channels that can change places with each other.

    Attributes:
        size: Number of bundles.
        places: For every axis on which they lie, its number and the entries of each bundle, int64
            ``[size, entries per bundle]``.
    """

    size: int
    places: tuple[tuple[int, Tensor], ...]


@dataclass(frozen=True, eq=False)
class TiedChannels:
    """Result of :func:`find_tied_channels`.

    Attributes:
        axes: Every axis of channels, in the order of the forward pass.
        groups: What can be permuted, in the order of the forward pass.
        scales: Class of one scale of every atom, int64 ``[atoms]``.
        free: Whether a class can be rescaled, ``[classes]``.
        signed: Whether its sign can change too, ``[classes]``.
        aliases: First name of every parameter and buffer that has several, by the others.
        spaces: Channels that more than permutations may act on, in the order of the forward pass.
        diagonals: Factors of channels that neighbouring layers can take over, likewise.
    """

    axes: tuple[Axis, ...]
    groups: tuple[TiedGroup, ...]
    scales: Tensor
    free: Tensor
    signed: Tensor
    aliases: Mapping[str, str]
    spaces: tuple[MatrixSpace, ...] = ()
    diagonals: tuple[Diagonal, ...] = ()

    @property
    def replaced(self) -> frozenset[int]:
        """Numbers of the groups that a space stands for: a matrix is more than a permutation."""
        return frozenset(space.group for space in self.spaces if space.group is not None)

    def permute(self, tensors: Mapping[str, Tensor], orders: Sequence[Tensor | None]) -> None:
        """Move channels, in place.

        Args:
            tensors: By first name; only those with channels of a group are looked at, and those
                that are missing are passed over.
            orders: For every group which bundle goes to each place, int64 ``[size]``; None to
                leave it.
        """
        for group, order in zip(self.groups, orders, strict=True):
            if order is None:
                continue
            for number, places in group.places:
                axis = self.axes[number]
                if axis.moves and axis.tensor in tensors:
                    axis.reorder(tensors[axis.tensor], places, order)


def find_tied_channels(model: nn.Module, example_inputs: Any = None) -> TiedChannels:
    """Find the channels of a model that can move together; the model is only read.

    Inputs and outputs of the model stay where they are, and so does what passes through a step that
    is not known. Grouped convolutions and
    GroupNorm keep their groups in place; channels move within them.

    Args:
        model: A plain model.
        example_inputs: As in :func:`passportize.plan`.

    Raises:
        TracingError: The model cannot be read on shapes alone.
    """
    norms = [norm.name for norm in find_norms(model)]
    trace = trace_model(model, example_inputs, norms=norms, training=False)
    if trace.method != "fx-meta" or not trace.recordings[0].shapes:
        raise TracingError(
            f"{type(model).__name__}: the way of its channels could not be followed "
            f"({trace.reason or 'no shapes are known'}); pass example_inputs="
        )
    walk = LabelWalk(model, trace.recordings[0].graph)
    labels = walk.labels
    _settle_loose(labels, walk.loose)
    moving, scales = labels.classes()
    free, signed = labels.limits(scales)
    axes = sorted(labels.axes, key=lambda axis: axis.step)
    groups = _groups(axes, moving)
    spaces = find_spaces(labels, axes, [group.places for group in groups], moving, scales)
    diagonals = tuple(sorted(labels.diagonals, key=lambda diagonal: diagonal.step))
    return TiedChannels(
        tuple(axes), groups, scales, free, signed, _aliases(model), spaces, diagonals
    )


def _settle_loose(labels: ChannelLabels, loose: Mapping[str, tuple[Tensor, int]]) -> None:
    """Axes for parameters that meet channels directly; pinned if they fit along no dimension."""
    taken = {axis.tensor for axis in labels.axes}
    waiting = dict(loose)
    for name in [name for name in loose if name in taken]:
        labels.pin(waiting.pop(name)[0])
        for axis in labels.axes:
            if axis.tensor == name:
                labels.pin(axis.atoms)
    while True:
        moving, scales = labels.classes()
        wrong = [
            name
            for name, (atoms, _) in waiting.items()
            if len(_varied(moving[atoms])) > 1 or len(_varied(scales[atoms])) > 1
        ]
        if not wrong:
            break
        for name in wrong:
            labels.pin(waiting.pop(name)[0])
    for name, (atoms, step) in waiting.items():
        for dim in _varied(moving[atoms]):
            first = atoms.movedim(dim, 0).flatten(1)[:, 0] if atoms.dim() > 1 else atoms
            labels.axes.append(Axis(name, dim, "vector", first, step))


def _varied(classes: Tensor) -> list[int]:
    return [
        dim for dim in range(classes.dim()) if bool((classes != classes.narrow(dim, 0, 1)).any())
    ]


def _groups(axes: Sequence[Axis], moving: Tensor) -> tuple[TiedGroup, ...]:
    """Bundles by the axes on which they lie and how often."""
    found: dict[int, list[tuple[int, list[int]]]] = defaultdict(list)
    for number, axis in enumerate(axes):
        entries: dict[int, list[int]] = defaultdict(list)
        for entry, bundle in enumerate(moving[axis.atoms].tolist()):
            entries[bundle].append(entry)
        for bundle, places in entries.items():
            found[bundle].append((number, places))
    found.pop(int(moving[FIXED]), None)
    alike: dict[tuple[tuple[int, int], ...], list[list[list[int]]]] = defaultdict(list)
    for lying in found.values():
        roles = {axes[number].role for number, _ in lying}
        # What nothing reads is an output of the model.
        if "columns" in roles and roles & {"rows", "vector"}:
            kind = tuple((number, len(where)) for number, where in lying)
            alike[kind].append([where for _, where in lying])
    groups = []
    for kind, members in alike.items():
        if len(members) > 1:
            lists = [torch.tensor([member[at] for member in members]) for at in range(len(kind))]
            numbers = [number for number, _ in kind]
            groups.append(TiedGroup(len(members), tuple(zip(numbers, lists, strict=True))))
    return tuple(sorted(groups, key=lambda group: group.places[0][0]))


def _aliases(model: nn.Module) -> dict[str, str]:
    first: dict[int, str] = {}
    aliases = {}
    for name, tensor in [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]:
        known = first.setdefault(id(tensor), name)
        if known != name:
            aliases[name] = known
    return aliases
