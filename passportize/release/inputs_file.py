"""The owner's inputs: batches with which a suspect may be looked at, kept in a file.

Their digest stands in :attr:`passportize.PassportConfig.inputs` before the key is drawn, so they
cannot be chosen to suit a suspect. They are no secret, but a thief is better off with them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from passportize.errors import DatasetError, InvalidArgument
from passportize.release.weights_digest import weights_digest
from passportize.training.input_moments import inputs_of
from passportize.utils.files import read_limited, write_atomically

__all__ = ["Inputs", "inputs_digest", "load_inputs", "read_inputs", "save_inputs"]

Batch = Tensor | dict[str, Tensor]
Inputs = Iterable[Any] | str | os.PathLike[str]
"""Batches of inputs, or the path of their file."""

_LARGEST = 1 << 32


def save_inputs(
    batches: Iterable[Any], path: str | os.PathLike[str], *, overwrite: bool = False
) -> str:
    """Write inputs that a suspect may be looked at with, and give their digest.

    The digest goes into the config before :func:`passportize.passportize`; the file is kept beside
    the claim. A few hundred samples that look like what the model is used on are enough.

    >>> import tempfile
    >>> import passportize as pp
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     digest = save_inputs([torch.zeros(4, 3, 8, 8)], f"{folder}/acme.inputs.safetensors")
    >>> config = pp.PassportConfig.trained(inputs=digest)
    >>> len(config.inputs)
    64

    Args:
        batches: Tensors ``[batch, ...]``, dicts of keyword arguments that are tensors, or pairs of
            one of these and labels, which are left out.
        path: Where to, ``"acme.inputs.safetensors"`` say.
        overwrite: Replace an existing file.

    Returns:
        SHA-256 over the batches, as hex; the same for the same batches in whatever file.

    Raises:
        InvalidArgument: There is no batch, or one is nothing of these.
        DatasetError: The file exists or cannot be written.
    """
    tensors = _named(batches)
    data = save(
        {
            name: tensor.cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in tensors.items()
        }
    )
    write_atomically(path, data, overwrite=overwrite, error=DatasetError)
    return weights_digest(tensors)


def load_inputs(path: str | os.PathLike[str]) -> list[Batch]:
    """Read the batches that :func:`save_inputs` wrote.

    Raises:
        DatasetError: The file is missing, damaged or of another kind.
    """
    try:
        tensors = load(read_limited(path, _LARGEST, error=DatasetError))
    except SafetensorError as error:
        raise _no_inputs(path, str(error)) from None
    batches: dict[int, Batch] = {}
    for name, tensor in tensors.items():
        number, _, argument = name.partition(".")
        if not (number.isascii() and number.isdigit()):
            raise _no_inputs(path, f"it holds {name[:40]!r}")
        if not argument:
            batches[int(number)] = tensor
            continue
        batch = batches.setdefault(int(number), {})
        if isinstance(batch, Tensor):
            raise _no_inputs(path, f"it holds {name[:40]!r}")
        batch[argument] = tensor
    if set(_named(batches[number] for number in sorted(batches))) != set(tensors):
        raise _no_inputs(path, "its batches are not numbered one after the other")
    return [batches[number] for number in sorted(batches)]


def read_inputs(inputs: Inputs, digest: str, who: str) -> list[Batch]:
    """Inputs that must be the very ones that were named before the key was drawn.

    Args:
        inputs: Batches, or their file.
        digest: What the claim or config says of them.
        who: Who asks, for messages.

    Raises:
        InvalidArgument: None were named, or others.
        DatasetError: The file cannot be read.
    """
    if not digest:
        raise InvalidArgument(
            f"{who}: inputs= were not named before the key was drawn, so they could have been "
            "chosen to suit the suspect; leave them out. For the next release: "
            "PassportConfig(inputs=save_inputs(...))"
        )
    batches = list(_opened(inputs))
    found = inputs_digest(batches)
    if found != digest:
        raise InvalidArgument(
            f"{who}: these are not the inputs that the claim names (digest {found[:12]}..., named "
            f"is {digest[:12]}...); give the file that save_inputs wrote"
        )
    return batches


def inputs_digest(inputs: Inputs) -> str:
    """SHA-256 over some batches, or those of a file, as :func:`save_inputs` gives it.

    Raises:
        InvalidArgument: As there.
        DatasetError: The file cannot be read.
    """
    return weights_digest(_named(_opened(inputs)))


def _opened(inputs: Inputs) -> Iterable[Batch]:
    return load_inputs(inputs) if isinstance(inputs, (str, os.PathLike)) else _batches(inputs)


def _batches(batches: Iterable[Any]) -> Iterable[Batch]:
    if isinstance(batches, (Tensor, Mapping)) or not isinstance(batches, Iterable):
        raise InvalidArgument(
            f"inputs must be batches, [images] for one batch, not a {type(batches).__name__}"
        )
    for batch in map(inputs_of, batches):
        if isinstance(batch, Tensor):
            yield batch
        elif (
            isinstance(batch, Mapping)
            and batch
            and all(
                isinstance(name, str) and isinstance(value, Tensor) for name, value in batch.items()
            )
        ):
            yield dict(batch)
        else:
            raise InvalidArgument(
                f"a batch of inputs must be a tensor or a dict of tensors, not a "
                f"{type(batch).__name__}"
            )


def _named(batches: Iterable[Any]) -> dict[str, Tensor]:
    """All tensors of some batches: the number of the batch, and the argument where it has names."""
    tensors = {}
    for number, batch in enumerate(_batches(batches)):
        if isinstance(batch, Tensor):
            tensors[f"{number}"] = batch.detach()
        else:
            tensors |= {f"{number}.{name}": value.detach() for name, value in batch.items()}
    if not tensors:
        raise InvalidArgument("there is no batch of inputs")
    return tensors


def _no_inputs(path: str | os.PathLike[str], reason: str) -> DatasetError:
    return DatasetError(
        f"{Path(path)}: this is no file of inputs ({reason}); give the one that save_inputs wrote"
    )
