"""The pictures of an image passport: what the paper calls passports, chosen by the claimant."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from passportize.errors import InvalidArgument
from passportize.passport.derivation import encode_label

__all__ = ["PassportImages"]

_DTYPES = {torch.uint8: "uint8", torch.float32: "float32"}
_PATCH = "patch/"
_LARGEST = 64 * 2**20


@dataclass(frozen=True, eq=False)
class PassportImages:
    """One set of pictures per side.

    Attributes:
        gamma: ``[C, H, W]`` or ``[N, C, H, W]``, uint8 or float32.
        beta: The same for beta.
        patches: By name of a weight, its mean patches of both sides, float32 ``[groups, D, 2]``
            (:func:`passportize.passport.mean_patch.record_patches`).

    Raises:
        InvalidArgument: Another type, an empty or infinite tensor, or more than 64 MiB in all.
    """

    gamma: torch.Tensor
    beta: torch.Tensor
    patches: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        size = 0
        for name, tensor in self._tensors():
            if not isinstance(tensor, torch.Tensor) or tensor.dtype not in _DTYPES:
                got = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
                raise InvalidArgument(
                    f"the {name} image must be a uint8 or float32 tensor, got {got}; "
                    "convert it with .to(torch.float32)"
                )
            if tensor.numel() == 0 or not bool(torch.isfinite(tensor).all()):
                raise InvalidArgument(f"the {name} image is empty or holds NaN or infinity")
            size += tensor.numel() * tensor.element_size()
        if size > _LARGEST:
            raise InvalidArgument(
                f"the images take {size / 2**20:.0f} MiB, {_LARGEST / 2**20:.0f} at most; "
                "use fewer or smaller ones"
            )
        # Private copies: a later change by the caller must not change the passport.
        object.__setattr__(self, "gamma", _own(self.gamma))
        object.__setattr__(self, "beta", _own(self.beta))
        patches = {weight: _own(self.patches[weight]) for weight in sorted(self.patches)}
        object.__setattr__(self, "patches", MappingProxyType(patches))

    def _tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield "gamma", self.gamma
        yield "beta", self.beta
        for weight in sorted(self.patches):
            yield _PATCH + weight, self.patches[weight]

    def digest(self) -> bytes:
        """SHA-256 over name, type, shape and little-endian content of all tensors."""
        digest = hashlib.sha256(encode_label("passport images"))
        for name, tensor in self._tensors():
            kind, content = _DTYPES[tensor.dtype], _little_endian(tensor)
            digest.update(encode_label(name, kind, tensor.dim(), *tensor.shape, content))
        return digest.digest()

    def as_input(self, side: str) -> torch.Tensor:
        """Float32 copy of one side, uint8 scaled to [0, 1]."""
        image = self.gamma if side == "gamma" else self.beta
        return image / 255.0 if image.dtype == torch.uint8 else image.clone()

    def to_bytes(self) -> bytes:
        """As safetensors; :meth:`from_bytes` is the inverse."""
        raw: bytes = save(dict(self._tensors()))
        return raw

    @classmethod
    def from_bytes(cls, raw: bytes) -> PassportImages:
        """Inverse of :meth:`to_bytes`.

        Raises:
            InvalidArgument: The bytes are not the images of a passport.
        """
        try:
            tensors = load(raw)
        except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError):
            tensors = {}
        gamma, beta = tensors.pop("gamma", None), tensors.pop("beta", None)
        if gamma is None or beta is None or not all(name.startswith(_PATCH) for name in tensors):
            raise InvalidArgument("the images of the passport are damaged")
        patches = {name[len(_PATCH) :]: patch for name, patch in tensors.items()}
        return cls(gamma, beta, patches)


def _own(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def _little_endian(image: torch.Tensor) -> bytes:
    array = image.numpy()
    raw: bytes = array.astype(array.dtype.newbyteorder("<")).tobytes()
    return raw
