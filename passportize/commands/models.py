"""plan and strip: what would be protected, and the plain model of a checkpoint."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated, Any

import typer

from passportize.atomic_file import write_atomically
from passportize.checkpoint import host_state_dict, load_weights, save_weights
from passportize.commands.inputs import Arguments, example_of, load_model, preset
from passportize.commands.terminal import REFUSED, AsJson, command, emit, leave, working
from passportize.errors import CheckpointError

__all__ = ["plan", "strip"]

TORCH_FILES = (".pt", ".pth", ".bin", ".ckpt", ".tar")


@command
def plan(
    model: Annotated[str, typer.Argument(help="A timm name, or module:function.")],
    arg: Arguments = None,
    formulation: Annotated[
        str, typer.Option("--preset", help="keyed, paper or signature.")
    ] = "keyed",
    where: Annotated[
        list[str] | None,
        typer.Option(help="Names of the norms to bind, 'layer4*' say; repeatable."),
    ] = None,
    input_size: Annotated[
        str | None,
        typer.Option(
            metavar="C,H,W", help="Size of one input, for models that timm does not know."
        ),
    ] = None,
    include_frozen: Annotated[
        bool, typer.Option("--include-frozen", help="Bind norms that do not train, too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show every norm of a model and the weight it would be bound to; 1 if there is none."""
    from passportize.planning import plan as make_plan

    with working(f"reading {model}", as_json):
        planned = make_plan(
            load_model(model, arg),
            config=preset(formulation),
            where=where or None,
            example_inputs=example_of(input_size),
            include_frozen=include_frozen,
        )
    emit(planned.to_dict(), str(planned), as_json)
    leave(0 if planned.bits else REFUSED)


@command
def strip(
    checkpoint: Annotated[Path, typer.Argument(help="Weights of a passportized model.")],
    out: Annotated[Path, typer.Argument(help="New file: .safetensors, or .pt and the like.")],
    key: Annotated[
        str | None,
        typer.Option(help="Where in a training checkpoint the weights are, state_dict_ema say."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Check that this model loads the result strictly: a timm name, or module:function."
        ),
    ] = None,
    arg: Arguments = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write the plain model's weights of a checkpoint, without any trace of a private branch."""
    with working(f"reading {checkpoint}", as_json):
        weights = load_weights(checkpoint, key)
        plain = host_state_dict(weights)
        if model is not None:
            _check_strictly(load_model(model, arg), plain, model)
        _write(out, plain, force)
    left_out = sorted(set(weights) - set(plain))
    record = {
        "file": str(out),
        "tensors": len(plain),
        "left_out": left_out,
        "checked_with": model,
    }
    text = f"{out}: {len(plain)} tensors, {len(left_out)} of the private branches left out"
    if not left_out:
        text += " (there were none)"
    if model is not None:
        text += f"; {model} loads it strictly"
    emit(record, text, as_json)


def _check_strictly(made: Any, plain: dict[str, Any], name: str) -> None:
    try:
        made.load_state_dict(plain, strict=True)
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{name} does not load the stripped weights: {detail}; check --model and --arg"
        ) from None


def _write(out: Path, plain: dict[str, Any], force: bool) -> None:
    if out.exists() and not force:
        raise CheckpointError(f"{out} exists already; choose another name, or give --force")
    if out.suffix == ".safetensors":
        save_weights(out, plain, overwrite=force)
    elif out.suffix in TORCH_FILES:
        import torch

        buffer = io.BytesIO()
        torch.save(plain, buffer)
        write_atomically(out, buffer.getvalue(), overwrite=force, error=CheckpointError)
    else:
        raise CheckpointError(
            f"{out}: the name must end in .safetensors, or in one of {', '.join(TORCH_FILES)}"
        )
