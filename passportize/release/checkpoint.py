"""Weights in and out of files, without ever running code from a file."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from passportize.errors import CheckpointError, InvalidArgument, MissingExtra
from passportize.layers.private_keys import private_keys, private_prefixes
from passportize.utils.files import write_atomically

__all__ = [
    "AVERAGED_KEYS",
    "WEIGHT_KEYS",
    "host_state_dict",
    "in_natural_order",
    "load_weights",
    "model_of_checkpoint",
    "read_checkpoint",
    "save_weights",
    "without_prefixes",
]

# Where training scripts put the weights, the likeliest first.
WEIGHT_KEYS = ("state_dict", "model", "model_state_dict", "module", "net", "network", "weights")
AVERAGED_KEYS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")

_WHOLE_MODEL_PREFIX = "module."
_COMPILED = "_orig_mod."


def host_state_dict(model: nn.Module | Mapping[str, Any]) -> dict[str, Any]:
    """The part of a state dict that the plain model has: every key of a private branch left out.

    Loads strictly into the model as it was before ``passportize``. The tensors are those of the
    model, not copies. Modules of the model's own that are called ``passport`` stay, see
    :mod:`passportize.layers.private_keys`.

    Args:
        model: A model, passportized or plain, or its state dict.

    Raises:
        InvalidArgument: The argument is neither.
    """
    if isinstance(model, nn.Module):
        prefixes = tuple(private_prefixes(model))
        state = model.state_dict()
        return {name: value for name, value in state.items() if not name.startswith(prefixes)}
    if not isinstance(model, Mapping):
        raise InvalidArgument(
            f"host_state_dict: expected a model or a state dict, got {type(model).__name__}"
        )
    private = private_keys(model)
    return {name: value for name, value in model.items() if name not in private}


def load_weights(path: str | os.PathLike[str], key: str | None = None) -> dict[str, Tensor]:
    """Read a state dict from a safetensors file or a torch checkpoint.

    A torch file is read with ``weights_only=True``: nothing in it is executed. Inside a training
    checkpoint the state dict is found under the usual keys. The prefixes that
    DistributedDataParallel and torch.compile add are taken off.

    Args:
        path: The file.
        key: Where in a training checkpoint to look, ``"state_dict_ema"`` say, if not in the usual
            place.

    Returns:
        Tensors on the CPU, by name, in the order of a torch file; sorted for safetensors, which
        keeps no order.

    Raises:
        CheckpointError: The file is missing, damaged, unsafe to load, or holds no state dict.
    """
    file = Path(path)
    content = read_checkpoint(file)
    state = _state_dict(content, key)
    if state is None:
        keys = ", ".join(sorted(map(str, content))[:8]) if isinstance(content, Mapping) else ""
        there = f" (it has: {keys})" if keys else ""
        place = f"under {key!r}" if key else "where training scripts put it"
        raise CheckpointError(f"{file}: no state dict {place}{there}; give its key, or export one")
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    return without_prefixes(tensors, file)


def save_weights(
    path: str | os.PathLike[str], state_dict: Mapping[str, Tensor], *, overwrite: bool = True
) -> None:
    """Write a state dict as safetensors; the file appears complete or not at all.

    Tensors that share memory (tied weights) are written once for each name, so that the file
    loads strictly.

    Raises:
        CheckpointError: A value is not a dense tensor, or the file cannot be written.
    """
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, value in state_dict.items():
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_meta:
            raise CheckpointError(
                f"{path}: {name!r} is not a dense tensor with data, which is all that safetensors "
                "holds; leave it out"
            )
        plain = value.detach().cpu().contiguous()
        address = plain.untyped_storage().data_ptr()
        if address in storages or plain.untyped_storage().nbytes() != plain.nbytes:
            plain = plain.clone()
        storages.add(address)
        tensors[name] = plain
    data = save(tensors, {"format": "pt"})
    write_atomically(path, data, overwrite=overwrite, error=CheckpointError)


def read_checkpoint(path: str | os.PathLike[str]) -> Any:
    """All that a safetensors file or a torch checkpoint holds; nothing in it is executed.

    Raises:
        CheckpointError: The file is missing, damaged or unsafe to load.
    """
    file = Path(path)
    try:
        with file.open("rb") as stream:
            head = stream.read(9)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise CheckpointError(f"{file}: {reason}; check the path") from None
    if not head:
        raise CheckpointError(f"{file}: the file is empty; get a complete copy of it")
    try:
        # A safetensors file: the length of its header, then the header, which is JSON.
        if head[8:9] == b"{":
            from safetensors.torch import load_file

            return in_natural_order(load_file(file))
        # Training scripts keep their command line beside the weights; it is plain data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{file}: it is damaged, no checkpoint, or holds pickled Python objects, which are "
            f"never loaded ({_told(error)}); get a complete copy, or export the "
            "state dict with passportize.host_state_dict and safetensors"
        ) from None


def _told(error: Exception) -> str:
    """What a reader's error says of the file, without the advice of torch to load it unsafely."""
    kind = type(error).__name__
    if "weights_only" in str(error):
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        return f"{kind}: it asks for {found[1]}" if found else kind
    return f"{kind}: " + str(error).partition("\n")[0][:200]


def in_natural_order(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a file that is sorted by letters; with numbers in order, nearly as registered."""
    return {name: tensors[name] for name in sorted(tensors, key=_natural)}


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts ``layer.2`` before ``layer.10``."""
    return [
        (int(part), "") if part.isdigit() and part.isascii() else (-1, part)
        for part in name.split(".")
    ]


def _state_dict(content: Any, key: str | None, depth: int = 3) -> Mapping[str, Any] | None:
    if not isinstance(content, Mapping) or not depth:
        return None
    if key is not None:
        return _state_dict(content.get(key), None, depth - 1) if key in content else None
    named = all(isinstance(name, str) for name in content)
    tensors = sum(isinstance(value, Tensor) for value in content.values())
    if named and tensors and tensors >= len(content) / 2:
        return content
    for place in (*WEIGHT_KEYS, *AVERAGED_KEYS):
        inside = _state_dict(content.get(place), None, depth - 1)
        if inside is not None:
            return inside
    return None


def without_prefixes(tensors: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Tensors by the names that they have without DistributedDataParallel and torch.compile.

    Args:
        tensors: Tensors by name.
        file: Where they come from, for the error.

    Raises:
        CheckpointError: Two of them then have the same name.
    """
    plain = {name.replace(_COMPILED, ""): value for name, value in tensors.items()}
    # torch's AveragedModel counts in a tensor beside the wrapped model.
    wrapped = [name for name in plain if name != "n_averaged"]
    while wrapped and all(name.startswith(_WHOLE_MODEL_PREFIX) for name in wrapped):
        plain = {name.removeprefix(_WHOLE_MODEL_PREFIX): plain[name] for name in wrapped}
        wrapped = list(plain)
    if len(plain) < len(tensors) - ("n_averaged" in tensors):
        raise CheckpointError(
            f"{file}: two of its tensors have the same name once {_COMPILED!r} is taken off; "
            "export the state dict of the model that was compiled"
        )
    return plain


def model_of_checkpoint(path: str | os.PathLike[str]) -> nn.Module:
    """The plain model that a training checkpoint of timm is of, with fresh weights.

    Raises:
        CheckpointError: It does not name a model of timm.
        MissingExtra: timm is not installed.
    """
    try:
        import timm
    except ImportError:
        raise MissingExtra(
            "making the model of a checkpoint needs timm; run pip install 'passportize[timm]', "
            "or give the plain model with model="
        ) from None
    content = read_checkpoint(path)
    content = content if isinstance(content, Mapping) else {}
    arch = content.get("arch")
    if not isinstance(arch, str) or not timm.is_model(arch):
        raise CheckpointError(
            f"{path}: it does not say which model of timm it is of; give the plain one with model="
        )
    arguments = content.get("args")
    given = vars(arguments) if hasattr(arguments, "__dict__") else {}
    names = {"num_classes": "num_classes", "in_chans": "in_chans", "gp": "global_pool"}
    settings = {ours: given[theirs] for theirs, ours in names.items() if given.get(theirs)}
    model: nn.Module = timm.create_model(arch, **settings, **(given.get("model_kwargs") or {}))
    return model
