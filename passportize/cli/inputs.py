"""What commands are given: passports, models by name, data."""

from __future__ import annotations

import ast
import importlib
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from passportize.cli.terminal import is_interactive
from passportize.errors import DatasetError, InvalidArgument, MissingExtra, WrongPassphrase
from passportize.passport.file import PASSPHRASE
from passportize.passport.passport import Passport

__all__ = [
    "Arguments",
    "PassphraseFile",
    "example_of",
    "load_data",
    "load_model",
    "new_passphrase",
    "open_passport",
]

PassphraseFile = Annotated[
    Path | None,
    typer.Option(
        help=f"File whose first line is the passphrase; else ${PASSPHRASE} counts, else you are "
        "asked.",
        show_default=False,
    ),
]
Arguments = Annotated[
    list[str] | None,
    typer.Option(
        "--arg",
        metavar="NAME=VALUE",
        help="Argument for making the model, num_classes=10 say; repeatable.",
        show_default=False,
    ),
]


def open_passport(path: Path, passphrase_file: Path | None) -> Passport:
    """Load a passport, with its passphrase from a file, the environment or a prompt."""
    if passphrase_file is not None:
        return Passport.load(path, _first_line(passphrase_file))
    try:
        return Passport.load(path)
    except WrongPassphrase:
        given = os.environ.get(PASSPHRASE)
        if given is None:
            if not is_interactive():
                raise WrongPassphrase(
                    f"{path} is sealed, and there is no terminal to ask for its passphrase; set "
                    f"{PASSPHRASE} or give --passphrase-file"
                ) from None
            given = typer.prompt(f"Passphrase of {path}", hide_input=True, err=True)
        return Passport.load(path, given)


def new_passphrase(passphrase_file: Path | None, without: bool) -> str | None:
    """The passphrase for a new passport file; None if it is to be without."""
    if without:
        if passphrase_file is not None:
            raise InvalidArgument("--no-passphrase and --passphrase-file exclude each other")
        return None
    if passphrase_file is not None:
        return _first_line(passphrase_file)
    given = os.environ.get(PASSPHRASE)
    if given is not None:
        return given
    if not is_interactive():
        raise InvalidArgument(
            f"there is no terminal to ask for a passphrase; set {PASSPHRASE}, or give "
            "--passphrase-file or --no-passphrase"
        )
    asked: str = typer.prompt(
        "Passphrase for the new passport", hide_input=True, confirmation_prompt=True, err=True
    )
    return asked


def load_model(name: str, arguments: Sequence[str] | None = None) -> nn.Module:
    """A model by its timm name, or from a function of the user's, ``module:function``.

    Raises:
        InvalidArgument: There is no such model, or making it failed.
        MissingExtra: timm is needed and not installed.
    """
    options = _options(arguments or ())
    if ":" in name:
        made = _call(name, "--model", **options)
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
    try:
        model: nn.Module = timm.create_model(name, **options)
    except Exception as error:
        raise InvalidArgument(
            f"timm.create_model({name!r}) failed: {type(error).__name__}: {error}; check the name "
            "and every --arg, or give module:function"
        ) from error
    return model


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


def load_data(name: str, model: nn.Module | None, batch: int) -> Iterable[Any]:
    """Pairs of inputs and class indices.

    Args:
        name: ``digits`` (the demo's test images), ``fashion-mnist`` or ``fashion-mnist:FOLDER``, a
            safetensors file with ``images`` and ``labels``, a folder of pictures with one folder
            per class (prepared as timm prepares them for the model), or ``module:function``.
        model: What the data are for.
        batch: Samples per batch.
    """
    if batch < 1:
        raise InvalidArgument(f"--batch-size {batch}: give 1 or more")
    if name == "digits" or name.partition(":")[0] == "fashion-mnist":
        return _demo_data(name, batch)
    path = Path(name)
    if path.is_dir():
        return _picture_folder(path, model, batch)
    if path.is_file():
        return _tensor_file(path, batch)
    if ":" in name:
        pairs: Iterable[Any] = _call(name, "--data")
        return pairs
    raise DatasetError(
        f"--data {name}: there is no such file or folder; give digits, fashion-mnist[:FOLDER], a "
        "folder of pictures, a safetensors file with images and labels, or module:function"
    )


def _demo_data(name: str, batch: int) -> list[Any]:
    from passportize.data.fashion_mnist import DEBIAN_FASHION_MNIST
    from passportize.data.images import batches, digits_data, fashion_data

    folder = name.partition(":")[2] or DEBIAN_FASHION_MNIST
    data = digits_data() if name == "digits" else fashion_data(folder)
    return list(batches(data.test_images, data.test_labels, batch))


def _tensor_file(path: Path, batch: int) -> list[Any]:
    from passportize.data.images import batches
    from passportize.release.checkpoint import load_weights

    tensors = load_weights(path)
    if not {"images", "labels"} <= set(tensors):
        raise DatasetError(f"{path} must hold the tensors 'images' and 'labels'")
    return list(batches(tensors["images"], tensors["labels"], batch))


def _picture_folder(path: Path, model: nn.Module | None, batch: int) -> Iterable[Any]:
    if model is None:
        raise InvalidArgument("--data with a folder of pictures needs --model to prepare them for")
    try:
        import timm.data
        import torch.utils.data
    except ImportError as error:
        raise MissingExtra(
            "pictures are prepared by timm, which is not installed: pip install 'passportize[timm]'"
        ) from error
    settings = timm.data.resolve_data_config({}, model=model)
    pictures = timm.data.create_dataset("", root=str(path), split="validation")
    pictures.transform = timm.data.create_transform(**settings, is_training=False)
    return torch.utils.data.DataLoader(pictures, batch_size=batch)


def _call(name: str, option: str, **options: Any) -> Any:
    """What a function of the user's returns, found from the current folder too."""
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
        try:
            options[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            options[name] = text
    return options


def _first_line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").partition("\n")[0].rstrip("\r")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise InvalidArgument(f"--passphrase-file {path}: {reason}") from None
