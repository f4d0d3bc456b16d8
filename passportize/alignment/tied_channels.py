"""Channels of a model that can change places, scale and sign without changing its function.

The channels of one tensor are tied to those of others by sums, norms, gates and depthwise
convolutions: they can only move together. A *group* is a set of such bundles that lie on the same
axes in the same way, so that any permutation of them leaves the function as it is (LayerShuffle of
"Rethinking White-Box Watermarks", KDD 2023); a class of one scale can be multiplied with any factor
where it is made and divided by it where it is read (NeuronScale, SignFlip).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from passportize.alignment.axes import Axis, Diagonal
from passportize.alignment.channels import ChannelLabels, varied
from passportize.alignment.exchanges import find_exchanges
from passportize.alignment.groups import Exchange, TiedGroup, find_bundles, find_groups
from passportize.alignment.heads import settle_heads, settle_tables
from passportize.alignment.shared_keys import QueryHeads, find_query_heads
from passportize.alignment.spaces import MatrixSpace, find_spaces, mixed_heads
from passportize.alignment.walk import LabelWalk
from passportize.alignment.walk_norms import is_known_norm
from passportize.errors import TracingError
from passportize.surgery.norms import find_norms
from passportize.tracing.trace import trace_model

__all__ = ["TiedChannels", "TiedGroup", "aliases_of", "find_tied_channels"]


@dataclass(frozen=True, eq=False)
class TiedChannels:
    """Result of :func:`find_tied_channels`.

    Attributes:
        axes: Every axis of channels, in the order of the forward pass.
        groups: What can be permuted, in the order of the forward pass.
        exchanges: Groups of grouped convolutions and norms that can change places as wholes, before
            channels do so within them.
        query_heads: Heads of queries that change places with others that share their keys, after
            all else has its place.
        scales: Class of one scale of every atom, int64 ``[atoms]``.
        free: Whether a class can be rescaled, ``[classes]``.
        signed: Whether its sign can change with its size, ``[classes]``.
        signs: Class of one sign of every atom, int64 ``[atoms]``; that of ``FIXED`` where none can
            change.
        mirrors: The same of those that change their signs together, so that the function stays.
        products: Channels of every product, of its left and its right factor, int64
            ``[3, channels]``, in the order of the forward pass: its scale is that of both.
        aliases: First name of every parameter and buffer that has several, by the others.
        spaces: Channels that more than permutations may act on, in the order of the forward pass.
        diagonals: Factors of channels that neighbouring layers can take over, likewise.
    """

    axes: tuple[Axis, ...]
    groups: tuple[TiedGroup, ...]
    scales: Tensor
    free: Tensor
    signed: Tensor
    signs: Tensor
    mirrors: Tensor
    products: tuple[Tensor, ...]
    aliases: Mapping[str, str]
    spaces: tuple[MatrixSpace, ...] = ()
    diagonals: tuple[Diagonal, ...] = ()
    exchanges: tuple[Exchange, ...] = ()
    query_heads: tuple[QueryHeads, ...] = ()

    @property
    def replaced(self) -> frozenset[int]:
        """Numbers of the groups that a space stands for: a matrix is more than a permutation."""
        return frozenset(space.group for space in self.spaces if space.group is not None)

    @property
    def units(self) -> tuple[TiedGroup, ...]:
        """All that can be permuted, in an order in which any disguise can be undone."""
        return (*self.exchanges, *self.groups, *self.query_heads)

    def times(self, factors: Tensor) -> Tensor:
        """A factor for each atom, where those of products have only what their class has."""
        factors = factors.clone() if self.products else factors
        for made, left, right in self.products:
            factors[made] = factors[left] * factors[right]
        return factors

    def permute(self, tensors: Mapping[str, Tensor], orders: Mapping[int, Tensor]) -> None:
        """Move channels, in place.

        Args:
            tensors: By first name; only those with channels that move are looked at, and those
                that are missing are passed over.
            orders: Which bundle goes to each place, int64 ``[size]``, by number in :attr:`units`;
                carried out one after the other.
        """
        for at, order in orders.items():
            for number, places in self.units[at].places:
                axis = self.axes[number]
                if axis.moves and axis.tensor in tensors:
                    axis.reorder(tensors[axis.tensor], places, order)


def find_tied_channels(model: nn.Module, example_inputs: Any = None) -> TiedChannels:
    """Find the channels of a model that can move together; the model is only read.

    Inputs and outputs of the model stay where they are, and so does what passes through a step that
    is not known. In grouped convolutions and GroupNorm channels move within their group, and whole
    groups change places.

    Args:
        model: A plain model.
        example_inputs: As in :func:`passportize.plan`.

    Raises:
        TracingError: The model cannot be read on shapes alone.
    """
    norms = [norm.name for norm in find_norms(model) if not _spelled_out(norm.module)]
    trace = trace_model(model, example_inputs, norms=norms, training=False)
    if trace.method != "fx-meta" or not trace.recordings[0].shapes:
        raise TracingError(
            f"{type(model).__name__}: the way of its channels could not be followed "
            f"({trace.reason or 'no shapes are known'}); pass example_inputs="
        )
    walk = LabelWalk(model, trace.recordings[0].graph)
    labels = walk.labels
    if walk.mixing:
        LabelWalk(model, trace.recordings[0].graph, walk)
    if labels.tables:
        settle_tables(labels)
    _settle_loose(labels, walk.loose)
    products = labels.products()
    single = labels.one_by_one() if labels.shared else None
    if labels.heads:
        settle_heads(labels, mixed_heads(labels))
    moving, scales = labels.classes()
    free, signed = labels.limits(scales)
    signs, mirrors = labels.signs()
    axes = sorted(labels.axes, key=lambda axis: axis.step)
    bundles = find_bundles(axes, moving)
    groups = find_groups(bundles)
    spaces = find_spaces(labels, axes, [group.places for group in groups], moving, scales)
    diagonals = tuple(sorted(labels.diagonals, key=lambda diagonal: diagonal.step))
    in_heads = (
        find_bundles(axes, labels.apart(), (bundles, moving)) if labels.meets_heads else bundles
    )
    whole, exchanges = find_exchanges(axes, in_heads, moving)
    query_heads = () if single is None else find_query_heads(labels, axes, spaces, single)
    return TiedChannels(
        axes=(*axes, *whole),
        groups=groups,
        scales=scales,
        free=free,
        signed=signed,
        signs=signs,
        mirrors=mirrors,
        products=products,
        aliases=aliases_of(model),
        spaces=spaces,
        diagonals=diagonals,
        exchanges=exchanges,
        query_heads=query_heads,
    )


def _spelled_out(norm: nn.Module) -> bool:
    """Whether the steps of a norm are to say what it does, as they do for what a block computes.

    So it is where factors have the shape of what they act on, as in ResMLP's affine layers, and for
    norms of classes of their own (EvoNorm, a norm over responses).
    """
    if not is_known_norm(norm):
        return True
    parameters = list(norm.parameters())
    shaped = all(parameter.dim() > 1 for parameter in parameters)
    return bool(parameters) and shaped and not list(norm.buffers())


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
            if len(varied(moving[atoms])) > 1 or len(varied(scales[atoms])) > 1
        ]
        if not wrong:
            break
        for name in wrong:
            labels.pin(waiting.pop(name)[0])
    for name, (atoms, step) in waiting.items():
        for dim in varied(moving[atoms]):
            first = atoms.movedim(dim, 0).flatten(1)[:, 0] if atoms.dim() > 1 else atoms
            labels.axes.append(Axis(name, dim, "vector", first, step))


def aliases_of(model: nn.Module) -> dict[str, str]:
    """First name of every tensor of a model that has several, by each of its other names."""
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
