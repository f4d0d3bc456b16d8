"""Plain models in the formats that deployment wants."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from passportize.errors import (
    AlreadyPassportized,
    CheckpointError,
    ExampleInputRequired,
    InvalidArgument,
    MissingExtra,
)
from passportize.release.audit import is_clean
from passportize.release.checkpoint import (
    host_state_dict,
    load_weights,
    model_of_checkpoint,
    save_weights,
)
from passportize.release.hub_folder import write_hub_folder
from passportize.release.notice import Notice
from passportize.release.preprocessing import Preprocessing
from passportize.release.strip import averaged_key
from passportize.tracing.example_inputs import ExampleInputs, default_inputs
from passportize.utils.frozen import in_eval_mode

__all__ = ["FORMATS", "export"]

FORMATS = ("safetensors", "onnx", "torch-export", "hf")


def export(
    source: nn.Module | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    to: str,
    model: nn.Module | None = None,
    example_inputs: Any = None,
    ema: bool = False,
    preprocessing: Preprocessing | None = None,
    notice: Notice | None = None,
) -> None:
    """Write a plain model for deployment, after a look that nothing of a private branch is in it.

    Args:
        source: A plain model, or a checkpoint; private tensors in a checkpoint are left out.
        path: File to write, or the folder for ``"hf"``.
        to: ``"safetensors"``: the weights. ``"onnx"``, ``"torch-export"``: the program, in eval
            mode. ``"hf"``: weights, config and a card in timm's layout for the Hugging Face hub.
        model: For a checkpoint and all formats but safetensors: the plain model that it fits; its
            weights are replaced. Made by timm by default, where the checkpoint names a model.
        example_inputs: Arguments of one forward pass, for the programs; timm models need none.
        ema: Take the checkpoint's averaged weights.
        preprocessing: For ``"hf"``: how pictures are prepared; as the model has it by default.
        notice: For ``"hf"``: what the card is to say of the mark; nothing by default.

    Raises:
        InvalidArgument: There is no such format.
        AlreadyPassportized: The model still carries private branches, or traces of them.
        CheckpointError: The checkpoint cannot be read, or does not fit.
        ExampleInputRequired: The model does not say what it takes.
        MissingExtra: The format needs a package that is not installed.
    """
    if to not in FORMATS:
        raise InvalidArgument(f"to={to!r} is unknown; use one of {', '.join(FORMATS)}")
    if not isinstance(source, nn.Module):
        weights = host_state_dict(load_weights(source, averaged_key(source) if ema else None))
        if to == "safetensors":
            save_weights(path, weights)
            return
        if model is None:
            model = model_of_checkpoint(source)
        source = _filled(model, weights, source)
    report = is_clean(source)
    if not report:
        raise AlreadyPassportized(
            f"{type(source).__name__} carries private branches, which would go out with it "
            f"({report.findings[0]}); call unpassportize(model) first"
        )
    if to == "hf":
        write_hub_folder(source, Path(path), preprocessing, notice)
    else:
        _WRITERS[to](source, Path(path), example_inputs)


def _write_safetensors(model: nn.Module, path: Path, example_inputs: Any) -> None:
    save_weights(path, model.state_dict())


def _write_onnx(model: nn.Module, path: Path, example_inputs: Any) -> None:
    inputs = _inputs(model, example_inputs)
    if not all(find_spec(name) for name in ("onnx", "onnxscript")):
        raise MissingExtra(
            "exporting to ONNX needs the packages onnx and onnxscript; run pip install "
            "'passportize[onnx]'"
        )
    with in_eval_mode(model), torch.no_grad():
        torch.onnx.export(
            model,
            inputs.args,
            str(path),
            kwargs=dict(inputs.kwargs),
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def _write_program(model: nn.Module, path: Path, example_inputs: Any) -> None:
    inputs = _inputs(model, example_inputs)
    with in_eval_mode(model), torch.no_grad():
        program = torch.export.export(model, inputs.args, dict(inputs.kwargs))
    torch.export.save(program, path)


_WRITERS: dict[str, Callable[[nn.Module, Path, Any], None]] = {
    "safetensors": _write_safetensors,
    "onnx": _write_onnx,
    "torch-export": _write_program,
}


def _inputs(model: nn.Module, example_inputs: Any) -> ExampleInputs:
    if example_inputs is not None:
        inputs = ExampleInputs.of(example_inputs)
        if inputs.runner is not None:
            raise InvalidArgument("export: example_inputs must be arguments, not a function")
        return inputs
    guessed = default_inputs(model)
    if guessed is None:
        raise ExampleInputRequired(
            f"{type(model).__name__} does not say what it takes; pass example_inputs=, a batch"
        )
    parameter = next(model.parameters(), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    return ExampleInputs(
        tuple(
            torch.zeros(item.shape, dtype=item.dtype, device=device)
            if isinstance(item, Tensor)
            else item
            for item in guessed.args
        )
    )


def _filled(
    model: nn.Module, weights: dict[str, Tensor], path: str | os.PathLike[str]
) -> nn.Module:
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"{path}: it does not fit {type(model).__name__}: {error}; give the right plain model "
            "with model="
        ) from None
    return model
