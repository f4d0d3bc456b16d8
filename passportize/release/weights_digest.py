"""A digest of released weights: names, types, shapes and bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from passportize.errors import CheckpointError
from passportize.passport.derivation import encode_label
from passportize.utils.dense import dense

__all__ = ["feed_tensor", "weights_digest"]

_DOMAIN = "passportize/weights/v1"


def weights_digest(state_dict: Mapping[str, object]) -> str:
    """SHA-256 over the tensors of a state dict, sorted by name, as hex.

    Names, dtypes, shapes and raw bytes enter; the file format and the device do not.

    Raises:
        CheckpointError: A tensor has no bytes to read (meta, nested, or far too large if dense).
    """
    digest = hashlib.sha256(encode_label(_DOMAIN))
    for name in sorted(state_dict):
        value = state_dict[name]
        if isinstance(value, Tensor):
            feed_tensor(digest, name, value)
    return digest.hexdigest()


def feed_tensor(digest: hashlib._Hash, name: str, tensor: Tensor) -> None:
    """Hash one tensor: name, dtype, shape, bytes in row-major order; a sparse one as if dense."""
    try:
        tensor = dense(tensor.detach())
    except ValueError as error:
        raise CheckpointError(
            f"{name} {error}, so it has no plain bytes to hash; load the weights as dense tensors "
            "first, or register what is no weight with persistent=False"
        ) from None
    dtype = str(tensor.dtype).removeprefix("torch.")
    digest.update(encode_label(name, dtype, tensor.dim(), *tensor.shape))
    flat = tensor.cpu().contiguous().reshape(-1)
    digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
