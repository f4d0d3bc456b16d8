"""How the owner prepared pictures for the model: a record for whoever measures accuracies later.

It enters no p-value. What a claimant says of their data is their word, and verdicts name it so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from passportize.errors import InvalidArgument
from passportize.release import strict_json as strict
from passportize.release.strict_json import require

__all__ = ["CROPS", "INTERPOLATIONS", "Preprocessing"]

INTERPOLATIONS = ("bicubic", "bilinear", "box", "hamming", "lanczos", "nearest", "random")
CROPS = ("border", "center", "squash")
_MOST_PIXELS = 1 << 26


@dataclass(frozen=True)
class Preprocessing:
    """What happens to a picture before the model sees it, in timm's words.

    Attributes:
        input_size: Channels, height and width of one input.
        mean, std: Subtracted and divided by, one number per channel; pixels are 0 to 1.
        interpolation: How a picture is resized, one of :data:`INTERPOLATIONS`.
        crop_pct: Share of the resized picture, along its shorter side, that is kept.
        crop_mode: Which part is kept, one of :data:`CROPS`.

    Raises:
        InvalidArgument: A value is out of range.
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        """Refuse what no picture can be prepared with."""
        try:
            self._check()
        except (TypeError, ValueError) as error:
            raise InvalidArgument(f"preprocessing: {error}") from None

    def _check(self) -> None:
        size = self.input_size
        require(len(size) == 3 and min(size) >= 1, f"input_size {size}: give C, H, W")
        require(math.prod(size) <= _MOST_PIXELS, f"input_size {size} is too large")
        for name, values in (("mean", self.mean), ("std", self.std)):
            require(
                len(values) == size[0] and all(math.isfinite(value) for value in values),
                f"{name} {values}: give a number for each of the {size[0]} channels",
            )
        require(min(self.std) > 0, f"std {self.std}: a deviation is more than 0")
        require(
            self.interpolation in INTERPOLATIONS,
            f"interpolation {self.interpolation!r}: use one of {', '.join(INTERPOLATIONS)}",
        )
        require(0 < self.crop_pct <= 8, f"crop_pct {self.crop_pct}: give a share, 0.875 say")
        require(
            self.crop_mode in CROPS, f"crop_mode {self.crop_mode!r}: use one of {', '.join(CROPS)}"
        )

    @classmethod
    def from_timm(cls, settings: Mapping[str, Any]) -> Preprocessing:
        """From what ``timm.data.resolve_data_config`` gives; other entries are ignored.

        Raises:
            InvalidArgument: An entry is missing, or makes no sense.
        """
        try:
            return cls(
                tuple(int(number) for number in settings["input_size"]),  # type: ignore[arg-type]
                tuple(float(number) for number in settings["mean"]),
                tuple(float(number) for number in settings["std"]),
                str(settings["interpolation"]),
                float(settings["crop_pct"]),
                str(settings.get("crop_mode") or "center"),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidArgument(f"preprocessing: {error} is missing or no number") from None

    def to_dict(self) -> dict[str, Any]:
        """JSON-compatible form; these are also timm's names for it."""
        record = asdict(self)
        return {**record, **{key: list(record[key]) for key in ("input_size", "mean", "std")}}

    @classmethod
    def from_dict(cls, record: Any) -> Preprocessing:
        """Inverse of :meth:`to_dict`, strict.

        Raises:
            ValueError: An entry is missing, unknown or not of its type.
            InvalidArgument: One is out of range.
        """
        entries = strict.record(record, set(cls.__dataclass_fields__))
        channels, height, width = _list(entries["input_size"], 3)
        return cls(
            (strict.count(channels, 1), strict.count(height, 1), strict.count(width, 1)),
            tuple(_number(value) for value in _list(entries["mean"])),
            tuple(_number(value) for value in _list(entries["std"])),
            strict.text(entries["interpolation"]),
            _number(entries["crop_pct"]),
            strict.text(entries["crop_mode"]),
        )

    def __str__(self) -> str:
        size = " x ".join(map(str, self.input_size))
        return (
            f"{size}, {self.interpolation}, {self.crop_mode} crop of {self.crop_pct:g}, "
            f"mean {_listed(self.mean)}, std {_listed(self.std)}"
        )


def _list(value: Any, length: int | None = None) -> list[Any]:
    items: list[Any] = strict.typed(value, list)
    require(length is None or len(items) == length, f"expected {length} numbers")
    require(len(items) <= 64, "too many numbers")
    return items


def _number(value: Any) -> float:
    # No int: it would be written as one again, and a header must come back the same.
    return strict.typed(value, float)


def _listed(values: tuple[float, ...]) -> str:
    distinct = dict.fromkeys(values)
    shown = distinct if len(distinct) == 1 else values
    return " ".join(f"{value:g}" for value in shown)
