"""Rows, vectors and bits to try the scheme on, without a model."""

from __future__ import annotations

import torch
from torch import Tensor

from passportize.passport.derivation import LabelledStream
from passportize.signature.vectors import SignVectors, draw_sign_vectors


def sign_vectors(channels: int, fan_in: int, seed: int = 0, offset: int = 0) -> SignVectors:
    """Vectors of so many rows, of a key of that number."""
    keyed = LabelledStream(seed.to_bytes(32, "big"))
    return SignVectors(draw_sign_vectors(keyed, "bn", 0, channels, fan_in).codes, offset)


def rows(channels: int, fan_in: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal numbers."""
    generator = torch.Generator().manual_seed(seed + 1)
    return torch.randn(channels, fan_in, generator=generator, dtype=torch.float64).to(dtype)


def signs(count: int, seed: int = 0) -> Tensor:
    """Bits as -1 and +1, float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (count,), generator=generator).double() * 2 - 1
