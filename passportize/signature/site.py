"""What is known about one normalization layer: a value, with no reference into the model."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

__all__ = ["ADDED_LATER", "Anchor", "AnchorPart", "Role", "Site"]

ADDED_LATER = frozenset({"expert_shape", "centred", "less_mean_row", "factor", "picked"})
"""Fields of a part that stand in its JSON form only where they are set."""


class Role(str, Enum):
    """What surgery does with a normalization layer."""

    BOUND = "bound"
    """Gets a private branch whose affine factors and bits come from the anchor weight."""
    STATISTICS = "statistics"
    """Gets private running statistics only: it has no anchor, or was left out by ``where``."""
    SKIPPED = "skipped"
    """Stays as it is; :attr:`Site.reason` says why."""
    UNREACHED = "unreached"
    """Stays as it is: it never runs in the forward pass that was traced."""


@dataclass(frozen=True)
class AnchorPart:
    """Rows of one weight tensor that answer for a run of the channels of a norm.

    Attributes:
        weight: Dotted name of the parameter, for example ``"layer1.0.conv1.weight"``.
        channels: How many channels this part answers for.
        axis: ``"output"``: row ``c`` is what produces channel ``c``. ``"input"``: row ``c`` is
            what consumes channel ``c`` (the fallback where no producer exists).
        start: First row used.
        repeats: How many rows answer for one channel: channel ``c`` gets the rows
            ``start + j * channels + c`` for ``j < repeats``, laid side by side (a fused qkv
            projection whose heads share one norm, say).
        groups: Groups of the convolution (1 for linear layers).
        transposed: Whether the weight is laid out ``[in, out / groups, ...]`` as in transposed
            convolutions.
        expert_shape: Shape of one kernel where the weight is a list of flattened kernels,
            ``[experts, numbers]``, of which a mixture is used (CondConv). The rows of all experts
            lie side by side. Empty for all other weights.
        centred: Whether the mean of each kernel (of each index of the first dimension) is taken
            from it before rows are read, because the layer does so itself: adding a constant to a
            kernel then changes nothing.
        less_mean_row: Whether the mean of all rows is taken from each of them, because the norm
            takes the mean over its channels: adding a vector to all rows then changes nothing.
        factor: Name of the parameter, one number for each row, that the layer's output is
            multiplied with on its way to a norm that takes the mean over its channels (LayerScale);
            empty where there is none. A vector divided by the factor of each row may then be added
            to it, and changes nothing
            (:func:`passportize.signature.factored_rows.without_mean_of_products`).
        picked: How many of the rows carry a bit, where not all do; which of them, the key decides.
    """

    weight: str
    channels: int
    axis: str = "output"
    start: int = 0
    repeats: int = 1
    groups: int = 1
    transposed: bool = False
    expert_shape: tuple[int, ...] = ()
    centred: bool = False
    less_mean_row: bool = False
    factor: str = ""
    picked: int | None = None

    @property
    def bits(self) -> int:
        """Signature bits that its rows carry."""
        return self.channels if self.picked is None else self.picked

    def to_dict(self) -> dict[str, Any]:
        """JSON-compatible form, from which the digest of a layout is made.

        What later versions added stands in it only where it is set, so that no layout that could
        be described before gets another digest, and with it other keys.
        """
        record = vars(self) | {"expert_shape": list(self.expert_shape)}
        return {
            key: value
            for key, value in record.items()
            if key not in ADDED_LATER or value or (key == "picked" and value is not None)
        }

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> AnchorPart:
        """Inverse of :meth:`to_dict`.

        Raises:
            TypeError: The record is not one of ours.
        """
        shape = tuple(record.get("expert_shape", ()))
        return cls(**{**record, "expert_shape": shape})


@dataclass(frozen=True)
class Anchor:
    """The weight that a norm is bound to.

    Attributes:
        parts: One part, or several for the producers of a concatenation. Their channels add up
            to the channels of the norm.
        rule: How it was found: ``"upstream"``, ``"concat"``, ``"downstream"``, ``"autograd"``,
            ``"order"``, ``"user"``, or ``"own"`` for a layer that carries bits in its own weight.
        crossed: What lies between weight and norm (``"add"``, ``"relu"``, ...), nearest to the
            norm last; empty for a direct producer.
    """

    parts: tuple[AnchorPart, ...]
    rule: str
    crossed: tuple[str, ...] = ()

    @property
    def channels(self) -> int:
        """Number of channels that the parts answer for."""
        return sum(part.channels for part in self.parts)

    @property
    def bits(self) -> int:
        """Signature bits that the rows of the parts carry."""
        return sum(part.bits for part in self.parts)


@dataclass(frozen=True)
class Site:
    """One normalization layer of a model.

    Attributes:
        name: Dotted name of the module, the first in registration order.
        aliases: Further names under which the same module object is registered.
        layer_type: Qualified class name, for example ``"torch.nn.BatchNorm2d"``.
        role: What surgery does with it.
        channels: Number of channels, 0 where unknown.
        channel_axis: Axis of the affine shape that counts channels (0, or another one for a
            LayerNorm over several dimensions).
        anchor: The weight it is bound to, for bound sites.
        fan_in: Entries of one row of the anchor (of the shortest row where parts differ).
        reason: Why it is not bound, or a note; empty where there is nothing to say.
    """

    name: str
    layer_type: str
    role: Role
    channels: int = 0
    channel_axis: int = 0
    anchor: Anchor | None = None
    fan_in: int = 0
    aliases: tuple[str, ...] = ()
    reason: str = ""

    @property
    def bits(self) -> int:
        """Signature bits that this site carries: one for each channel, or each picked row."""
        if self.role is not Role.BOUND:
            return 0
        return self.channels if self.anchor is None else self.anchor.bits

    def to_dict(self) -> dict[str, Any]:
        """JSON-compatible form; :meth:`from_dict` is the inverse."""
        record = vars(self) | {"role": self.role.value, "aliases": list(self.aliases)}
        if self.anchor is not None:
            record["anchor"] = {
                "parts": [part.to_dict() for part in self.anchor.parts],
                "rule": self.anchor.rule,
                "crossed": list(self.anchor.crossed),
            }
        return record

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Site:
        """Inverse of :meth:`to_dict`.

        Raises:
            KeyError, TypeError, ValueError: The record is not one of ours.
        """
        fields = dict(record)
        fields["role"] = Role(fields["role"])
        fields["aliases"] = tuple(fields.get("aliases", ()))
        if fields.get("anchor") is not None:
            anchor = dict(fields["anchor"])
            fields["anchor"] = Anchor(
                parts=tuple(AnchorPart.from_dict(part) for part in anchor["parts"]),
                rule=anchor["rule"],
                crossed=tuple(anchor.get("crossed", ())),
            )
        return cls(**fields)
