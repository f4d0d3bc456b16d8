"""The pictures of an image passport: what the paper calls passports, chosen by the claimant."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from passportize.derivation import encode_label
from passportize.errors import InvalidArgument

__all__ = ["PassportImages"]

_DTYPES = {torch.uint8: "uint8", torch.float32: "float32"}
_LARGEST = 64 * 2**20


@dataclass(frozen=True, eq=False)
class PassportImages:
    """One set of pictures per side.

    Attributes:
        gamma: ``[C, H, W]`` or ``[N, C, H, W]`` (or any shape that the model takes, unbatched or
            batched), uint8 or float32.
        beta: The same for beta.

    Raises:
        InvalidArgument: Another type, an empty or infinite tensor, or more than 64 MiB in all.
    """

    gamma: torch.Tensor
    beta: torch.Tensor

    def __post_init__(self) -> None:
        size = 0
        for side in ("gamma", "beta"):
            image = getattr(self, side)
            if not isinstance(image, torch.Tensor) or image.dtype not in _DTYPES:
                got = image.dtype if isinstance(image, torch.Tensor) else type(image).__name__
                raise InvalidArgument(
                    f"The {side} image must be a uint8 or float32 tensor, got {got}; "
                    "convert it with .to(torch.float32)."
                )
            if image.numel() == 0 or not bool(torch.isfinite(image).all()):
                raise InvalidArgument(f"The {side} image is empty or holds NaN or infinity.")
            size += image.numel() * image.element_size()
        if size > _LARGEST:
            raise InvalidArgument(
                f"The images take {size / 2**20:.0f} MiB, {_LARGEST / 2**20:.0f} at most; "
                "use fewer or smaller ones."
            )
        # Private copies: a later change by the caller must not change the passport.
        for side in ("gamma", "beta"):
            image = getattr(self, side).detach().to("cpu", copy=True).contiguous()
            object.__setattr__(self, side, image)

    def digest(self) -> bytes:
        """SHA-256 over side, type, shape and little-endian content of both tensors."""
        encoded = b""
        for side, image in (("gamma", self.gamma), ("beta", self.beta)):
            encoded += encode_label(
                side, _DTYPES[image.dtype], image.dim(), *image.shape, _little_endian(image)
            )
        return hashlib.sha256(encode_label("passport images") + encoded).digest()

    def as_input(self, side: str) -> torch.Tensor:
        """Float32 copy of one side, uint8 scaled to [0, 1]."""
        image = self.gamma if side == "gamma" else self.beta
        return image / 255.0 if image.dtype == torch.uint8 else image.clone()

    def to_bytes(self) -> bytes:
        """As safetensors; :meth:`from_bytes` is the inverse."""
        raw: bytes = save({"gamma": self.gamma, "beta": self.beta})
        return raw

    @classmethod
    def from_bytes(cls, raw: bytes) -> PassportImages:
        """Inverse of :meth:`to_bytes`.

        Raises:
            InvalidArgument: The bytes are not two images.
        """
        try:
            tensors = load(raw)
        except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError):
            tensors = {}
        if set(tensors) != {"gamma", "beta"}:
            raise InvalidArgument("The images of the passport are damaged.")
        return cls(tensors["gamma"], tensors["beta"])


def _little_endian(image: torch.Tensor) -> bytes:
    array = image.numpy()
    raw: bytes = array.astype(array.dtype.newbyteorder("<")).tobytes()
    return raw
