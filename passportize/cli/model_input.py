"""Models that commands are given: by timm's name of them, or by a function of the user's."""

from __future__ import annotations

import ast
import difflib
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from passportize.errors import InvalidArgument, MissingExtra

__all__ = [
    "MODEL_HELP",
    "Arguments",
    "InputSize",
    "NumClasses",
    "PlainModel",
    "call_function",
    "example_of",
    "literal",
    "load_model",
]

MODEL_HELP = "timm's name (resnet18, hf-hub:org/name, local-dir:folder), or module:function."
_PLACES = ("hf-hub:", "hf_hub:", "local-dir:", "local_dir:")

Arguments = Annotated[
    list[str] | None,
    typer.Option(
        "--arg",
        metavar="NAME=VALUE",
        help="Argument for making the model, img_size=96 say; repeatable.",
        show_default=False,
    ),
]
PlainModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        help=f"The plain model, where the checkpoint does not name it: {MODEL_HELP}",
        show_default=False,
    ),
]
NumClasses = Annotated[
    int | None,
    typer.Option("--num-classes", min=0, help="Classes that the model has.", show_default=False),
]
InputSize = Annotated[
    str | None,
    typer.Option(
        "--input-size",
        metavar="C,H,W",
        help="Size of one input, for models that timm does not know.",
        show_default=False,
    ),
]


def load_model(
    name: str, arguments: Sequence[str] | None = None, num_classes: int | None = None
) -> nn.Module:
    """A model by its timm name, or from a function of the user's, ``module:function``.

    Raises:
        InvalidArgument: There is no such model, or making it failed.
        MissingExtra: timm is needed and not installed.
    """
    options = _options(arguments or ())
    if num_classes is not None:
        options["num_classes"] = num_classes
    if ":" in name and not name.startswith(_PLACES):
        made = call_function(name, "--model", **options)
        if not isinstance(made, nn.Module):
            raise InvalidArgument(f"{name} gives a {type(made).__name__}, not a torch.nn.Module")
        return made
    try:
        import timm
    except ImportError as error:
        raise MissingExtra(
            f"{name!r} is taken for a timm name, and timm is not installed: pip install "
            "'passportize[timm]'; a function of yours is given as module:function"
        ) from error
    if not name.startswith(_PLACES):
        _check_name(name, timm.list_models())
    try:
        model: nn.Module = timm.create_model(name, **options)
    except Exception as error:
        raise InvalidArgument(
            f"timm.create_model({name!r}) failed: {type(error).__name__}: {error}; check the name "
            "and every --arg, or give module:function"
        ) from error
    return model


def _check_name(name: str, known: Sequence[str]) -> None:
    architecture = name.partition(".")[0]
    if architecture in known:
        return
    near = difflib.get_close_matches(architecture.lower(), known, 3)
    guess = f"did you mean {' or '.join(near)}? " if near else ""
    raise InvalidArgument(
        f"timm has no model {architecture!r}; {guess}Names are those of timm.list_models(), "
        "hf-hub:org/name or local-dir:folder; a function of yours is given as module:function"
    )


def example_of(size: str | None) -> Any:
    """An input of zeros, two samples of a size such as ``3,224,224``; None without a size."""
    if size is None:
        return None
    import torch

    try:
        numbers = [int(part) for part in size.split(",")]
        if min(numbers) < 1:
            raise ValueError
    except ValueError:
        raise InvalidArgument(
            f"--input-size {size}: give whole numbers with commas, 3,224,224 say"
        ) from None
    return torch.zeros(2, *numbers)


def call_function(name: str, option: str, **options: Any) -> Any:
    """What a function of the user's returns, found from the current folder too.

    Raises:
        InvalidArgument: It cannot be imported, or raised something.
    """
    module, _, attribute = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        function: Any = importlib.import_module(module)
        for part in attribute.split("."):
            function = getattr(function, part)
        return function(**options)
    except Exception as error:
        raise InvalidArgument(
            f"{option} {name}: {type(error).__name__}: {error}; it must name a function that can "
            "be imported from here, as module:function"
        ) from error
    finally:
        sys.path.remove(str(Path.cwd()))


def _options(arguments: Sequence[str]) -> dict[str, Any]:
    options = {}
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if not equals or not name.isidentifier():
            raise InvalidArgument(f"--arg {argument}: give NAME=VALUE, num_classes=10 say")
        options[name] = literal(text)
    return options


def literal(text: str) -> Any:
    """What Python takes a text for; the text itself where that is nothing."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
