"""The formulation of the private branch and the dials of its training: one frozen dataclass."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from passportize.errors import InvalidArgument

__all__ = ["DEEPER_SHARE", "FORMULATIONS", "OUTPUT_SHARE", "PassportConfig"]

FORMULATIONS = ("keyed", "paper", "signature")
PASSES = ("automatic", "doubled", "separate")
SHORTEST_ROW = 64
MINIMUM_FAN_IN = 8
"""A row with fewer entries has too little freedom: one bit would bend the weight visibly."""

OUTPUT_SHARE = 0.003
"""What a mark put into a trained model may make of the variance of what marked rows compute."""

DEEPER_SHARE = 0.01
"""The same of a mark that was trained in and is put in once more before the release."""

_DIGEST = re.compile(r"[0-9a-f]{64}").fullmatch

_ADDED_LATER = ("bits", "shortest_row", "licence_bits", "inputs")
"""Settings that stand in the JSON form only where they are not at their default."""


@dataclass(frozen=True)
class PassportConfig:
    """How private branches are built and trained. Use a preset and change what you need.

    >>> PassportConfig.keyed(private_fraction=0.5).private_fraction
    0.5

    Attributes:
        formulation: ``"keyed"``: the private affine factors are fixed functions of the responses.
            ``"paper"``: they pass through a learnable bottleneck, as in "Passport-aware
            Normalization for Deep Model Protection" (NeurIPS 2020). ``"signature"``: there is no
            private forward pass, the bits alone are embedded.
        margin: The sign loss is zero for a channel whose response exceeds this on the side of
            its bit. In standard deviations of the response at the start (raw for ``"paper"``).
        sign_weight: Weight of the sign loss.
        response_weight: Weight of the sum of squared raw responses (``"paper"`` only).
        private_weight: Weight of the private branch's loss beside that of the public one; less
            where it sees only a few samples of a batch
            (:func:`passportize.layers.joint_forward.weight_for`).
        private_fraction: Share of the batch that also passes through the private branch; at least
            8 samples where norms use statistics of the batch, and 16 where one of them sees a
            single value per channel of each sample. With two passes it is a share of the batches:
            a quarter is the whole of every fourth batch.
        private_every: The private branch is run at every so many training steps.
        sign_every: The sign loss is applied at every so many training steps; in the others the
            responses are constants, so that nothing is learned through them.
        shift_scale: Standard deviation of the private shift in units of the public scale
            (``"keyed"`` only).
        bottleneck: The learnable map of ``"paper"`` narrows the channels by this factor.
        passes: ``"doubled"``: one forward pass over the batch with its private part appended.
            ``"separate"``: two passes, where samples meet or cannot be appended (graphs, say).
            ``"automatic"``: the first where it is right, which is tried.
        bits: How many rows of the whole model carry a bit, picked by the key; None for all that
            can (``"signature"`` only). A model with fewer rows carries what it can, and its plan
            says so.
        shortest_row: Where rows are picked, those with fewer entries are left out: they have too
            few directions to hide a bit in.
        licence_bits: How many of the rows that are left over tell the copies of licensees apart
            (:func:`passportize.mark_copy`), where so many are left; they stay as they are until a
            copy is marked.
        inputs: Digest of the owner's inputs (:func:`passportize.save_inputs`), with which a suspect
            may be looked at once more (``verify(inputs=)``); empty without. The key depends on it,
            so nobody can choose inputs to suit a suspect.
    """

    formulation: str
    margin: float
    sign_weight: float
    response_weight: float = 0.0
    private_weight: float = 1.0
    private_fraction: float = 0.25
    private_every: int = 1
    sign_every: int = 1
    shift_scale: float = 0.25
    bottleneck: int = 4
    passes: str = "automatic"
    bits: int | None = None
    shortest_row: int = SHORTEST_ROW
    licence_bits: int = 0
    inputs: str = ""

    def __post_init__(self) -> None:
        """Refuse values that make no sense, by name."""
        if self.formulation not in FORMULATIONS:
            raise InvalidArgument(
                f"formulation={self.formulation!r} is unknown; use one of {', '.join(FORMULATIONS)}"
            )
        if self.passes not in PASSES:
            raise InvalidArgument(
                f"passes={self.passes!r} is unknown; use one of {', '.join(PASSES)}"
            )
        for name in ("margin", "sign_weight", "response_weight", "private_weight", "shift_scale"):
            value = getattr(self, name)
            if (
                not isinstance(value, (int, float))
                or isinstance(value, bool)
                or not math.isfinite(value)
                or value < 0
            ):
                raise InvalidArgument(f"{name}={value!r} must be a finite number, 0 or more")
        if not isinstance(self.private_fraction, (int, float)) or not (
            0 < self.private_fraction <= 1
        ):
            raise InvalidArgument(
                f"private_fraction={self.private_fraction!r} must lie in (0, 1]; use the "
                "'signature' preset to train without private passes"
            )
        for name in ("private_every", "sign_every", "bottleneck"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InvalidArgument(f"{name}={value!r} must be a whole number, 1 or more")
        if self.inputs != "" and not (isinstance(self.inputs, str) and _DIGEST(self.inputs)):
            raise InvalidArgument(
                f"inputs={self.inputs!r} must be the digest of some inputs, 64 hexadecimal digits "
                "as passportize.save_inputs gives them"
            )
        self._check_density()

    def _check_density(self) -> None:
        for name, least in (("bits", 1), ("shortest_row", MINIMUM_FAN_IN), ("licence_bits", 0)):
            value = getattr(self, name)
            if name == "bits" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise InvalidArgument(f"{name}={value!r} must be a whole number, {least} or more")
        if self.licence_bits and self.bits is None:
            raise InvalidArgument(
                "licence_bits= needs rows that bits= leaves over; use PassportConfig.trained()"
            )
        if self.formulation == "signature":
            return
        if self.bits is not None or self.shortest_row != SHORTEST_ROW:
            raise InvalidArgument(
                f"bits= and shortest_row= pick the rows that carry bits; with {self.formulation!r} "
                "every channel needs its row for the private branch. Use "
                "PassportConfig.signature(bits=...)"
            )

    @classmethod
    def keyed(cls, **changes: Any) -> PassportConfig:
        """The default: nothing in the private branch is free, so its accuracy is evidence too.

        Its loss counts half: that costs the public branch half as much and the private one little.
        The sign loss comes at every fourth step, four times as heavy: that costs neither accuracy
        nor bits (both ``benchmarks/training/few_samples.py``), and a step less
        (``benchmarks/cost/cost.py``).
        """
        preset = cls(
            formulation="keyed", margin=2.0, sign_weight=0.4, private_weight=0.5, sign_every=4
        )
        return _preset(preset, changes)

    @classmethod
    def paper(cls, **changes: Any) -> PassportConfig:
        """The published system: learnable bottleneck, raw response, both branches on every image.

        The numbers are those of the authors' code: margin 0.1, sign loss 0.1, response
        penalty 1e-5.
        """
        preset = cls(
            formulation="paper",
            margin=0.1,
            sign_weight=0.1,
            response_weight=1e-5,
            private_fraction=1.0,
        )
        return _preset(preset, changes)

    @classmethod
    def signature(cls, **changes: Any) -> PassportConfig:
        """Bits only: almost free, and also for models that are trained already.

        The sign loss keeps a margin of 1. With 2 it pushes most rows all the time, and somebody
        who trains many networks by the same recipe can tell marked ones from the sizes of single
        entries (``benchmarks/proof/detectors.py``).
        """
        preset = cls(formulation="signature", margin=1.0, sign_weight=0.4, sign_every=8)
        return _preset(preset, changes)

    @classmethod
    def trained(cls, **changes: Any) -> PassportConfig:
        """Bits only, for a model that is trained already and is not trained on.

        1,024 rows, picked by the key, at a margin of 0.5: see :func:`passportize.embed_signature`
        with ``calibration=``. What other numbers cost is in ``docs/marking.md``. Up to 4,096 of
        the rows left over can tell the copies of licensees apart.
        """
        return cls.signature(**{"margin": 0.5, "bits": 1024, "licence_bits": 4096, **changes})

    @classmethod
    def preset(cls, name: str, **changes: Any) -> PassportConfig:
        """A preset by its name, which is that of its formulation.

        Args:
            name: One of :data:`FORMULATIONS`.
            **changes: Other settings.

        Raises:
            InvalidArgument: There is no such preset, or a setting is unknown or makes no sense.
        """
        presets = {"keyed": cls.keyed, "paper": cls.paper, "signature": cls.signature}
        if name not in presets:
            raise InvalidArgument(f"preset {name!r} is unknown; use one of {', '.join(presets)}")
        return presets[name](**changes)

    @property
    def has_bottleneck(self) -> bool:
        """Whether the private factors pass through a learned map, which the claimant brings."""
        return self.formulation == "paper"

    @property
    def has_private_pass(self) -> bool:
        """Whether there is a private branch to run, or bits only."""
        return self.formulation != "signature"

    @property
    def private_period(self) -> int:
        """At every so many-th step the private branch is run.

        A batch that cannot be appended to cannot be parted either, so where there are two passes
        ``private_fraction`` counts batches instead of samples.

        >>> PassportConfig.keyed(passes="separate", private_fraction=0.25).private_period
        4
        """
        batches = round(1 / self.private_fraction) if self.passes == "separate" else 1
        return self.private_every * batches

    def to_dict(self) -> dict[str, Any]:
        """JSON-compatible form; :meth:`from_dict` is the inverse.

        What later versions added stands in it only where it is set, so that claims made before keep
        their digests.
        """
        default = {field.name: field.default for field in fields(self)}
        return {
            name: value
            for name, value in asdict(self).items()
            if name not in _ADDED_LATER or value != default[name]
        }

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> PassportConfig:
        """Inverse of :meth:`to_dict`.

        Raises:
            InvalidArgument: The record is not one of ours.
        """
        known = {field.name for field in fields(cls)}
        if set(record) - known:
            raise InvalidArgument(
                f"unknown settings in the config: {', '.join(sorted(set(record) - known))}"
            )
        try:
            return cls(**record)
        except TypeError as error:
            raise InvalidArgument(f"the config is incomplete: {error}") from None


def _preset(preset: PassportConfig, changes: dict[str, Any]) -> PassportConfig:
    known = {field.name for field in fields(PassportConfig)} - {"formulation"}
    if set(changes) - known:
        raise InvalidArgument(
            f"unknown settings: {', '.join(sorted(set(changes) - known))}; "
            f"known are {', '.join(sorted(known))}"
        )
    return replace(preset, **changes)
