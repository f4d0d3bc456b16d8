"""Labelled data that commands are given, and how pictures are prepared for a model."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from passportize.cli.model_input import call_function
from passportize.errors import DatasetError, InvalidArgument, MissingExtra
from passportize.release.preprocessing import Preprocessing

__all__ = [
    "BatchSize",
    "Data",
    "ImgSize",
    "Mean",
    "Std",
    "given_preprocessing",
    "load_data",
    "preparation",
    "some_data",
]

Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="Labelled data: digits, fashion-mnist[:FOLDER], a folder of pictures with one folder "
        "per class, a safetensors file with images and labels, or module:function.",
        show_default=False,
    ),
]
BatchSize = Annotated[int, typer.Option("--batch-size", help="Samples per batch.")]
ImgSize = Annotated[
    int | None,
    typer.Option(
        "--img-size", min=1, help="Height and width of prepared pictures.", show_default=False
    ),
]
Mean = Annotated[
    str | None,
    typer.Option(
        "--mean",
        metavar="R,G,B",
        help="What is subtracted from pixels of 0 to 1.",
        show_default=False,
    ),
]
Std = Annotated[
    str | None,
    typer.Option(
        "--std", metavar="R,G,B", help="What they are divided by then.", show_default=False
    ),
]


def given_preprocessing(
    img_size: int | None, mean: str | None, std: str | None
) -> dict[str, tuple[float, ...] | int]:
    """What the options say of the preparation, in timm's names; nothing that was not given.

    Raises:
        InvalidArgument: ``mean`` or ``std`` is no list of numbers.
    """
    given: dict[str, tuple[float, ...] | int] = {}
    if img_size is not None:
        given["img_size"] = img_size
    for name, text in (("mean", mean), ("std", std)):
        if text is not None:
            given[name] = _numbers(text, f"--{name}")
    return given


def preparation(
    model: nn.Module | None,
    recorded: Preprocessing | None,
    given: Mapping[str, tuple[float, ...] | int],
) -> tuple[Preprocessing, str]:
    """How pictures are to be prepared, and whose word that is.

    What the options say counts most, then what the claim records, then timm's defaults for the
    model.

    Returns:
        The preparation, and its source in words.

    Raises:
        InvalidArgument: Nothing says how, or a value makes no sense.
        MissingExtra: timm is needed and not installed.
    """
    if recorded is None and model is None:
        raise InvalidArgument("--data with a folder of pictures needs --model to prepare them for")
    if recorded is not None:
        settings, source = recorded.to_dict(), "as the claim records it"
    else:
        settings, source = _defaults(model), "timm's defaults for the model"
    if "img_size" in given:
        side = given["img_size"]
        settings["input_size"] = (settings["input_size"][0], side, side)
    for name in ("mean", "std"):
        if name in given:
            values = given[name]
            assert isinstance(values, tuple)
            settings[name] = values * settings["input_size"][0] if len(values) == 1 else values
    if given:
        options = ", ".join("--" + name.replace("_", "-") for name in given)
        source = f"by {options}; else {source}"
    return Preprocessing.from_timm(settings), source


def load_data(
    name: str,
    model: nn.Module | None,
    batch: int,
    prepared: Preprocessing | None = None,
) -> Iterable[Any]:
    """Pairs of inputs and class indices.

    Args:
        name: ``digits`` (the demo's test images), ``fashion-mnist`` or ``fashion-mnist:FOLDER``, a
            safetensors file with ``images`` and ``labels``, a folder of pictures with one folder
            per class, or ``module:function``.
        model: What the data are for.
        batch: Samples per batch.
        prepared: How to prepare pictures; as timm does for the model by default.
    """
    if batch < 1:
        raise InvalidArgument(f"--batch-size {batch}: give 1 or more")
    if name == "digits" or name.partition(":")[0] == "fashion-mnist":
        return _demo_data(name, batch)
    path = Path(name)
    if path.is_dir():
        return _picture_folder(path, model, batch, prepared)
    if path.is_file():
        return _tensor_file(path, batch)
    if ":" in name:
        pairs: Iterable[Any] = call_function(name, "--data")
        return pairs
    raise DatasetError(
        f"--data {name}: there is no such file or folder; give digits, fashion-mnist[:FOLDER], a "
        "folder of pictures, a safetensors file with images and labels, or module:function"
    )


def some_data(
    data: str,
    model: nn.Module,
    images: int | None,
    batch: int,
    given: dict[str, tuple[float, ...] | int],
    recorded: Preprocessing | None = None,
) -> tuple[list[Any], Preprocessing | None]:
    """The first so many samples, from all classes of a folder, and how they were prepared.

    Args:
        data: As for :func:`load_data`.
        model: What the data are for.
        images: How many, to the next whole batch; None for all.
        batch: Samples per batch.
        given: From :func:`given_preprocessing`.
        recorded: What a claim says of the preparation.
    """
    prepared = None
    if Path(data).is_dir():
        prepared, _ = preparation(model, recorded, given)
    loader: Any = load_data(data, model, batch, prepared)
    pictures = getattr(loader, "dataset", None)
    if images is not None and pictures is not None and len(pictures) > images:
        # Folders come one after the other: so many evenly from all of them.
        import torch.utils.data

        chosen = [index * len(pictures) // images for index in range(images)]
        subset = torch.utils.data.Subset(pictures, chosen)
        loader = torch.utils.data.DataLoader(subset, batch_size=batch)
    count = None if images is None else -(-images // batch)
    return list(itertools.islice(loader, count)), prepared


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


def _picture_folder(
    path: Path, model: nn.Module | None, batch: int, prepared: Preprocessing | None
) -> Iterable[Any]:
    if prepared is None:
        prepared, _ = preparation(model, None, {})
    try:
        import timm.data
        import torch.utils.data
    except ImportError as error:
        raise _no_timm() from error
    settings = prepared.to_dict()
    settings["input_size"] = prepared.input_size
    try:
        pictures = timm.data.create_dataset(
            "", root=str(path), split="validation", input_img_mode=_mode(prepared.input_size[0])
        )
    except (OSError, RuntimeError) as error:
        raise DatasetError(f"--data {path}: {error}; give one folder of pictures per class") from (
            None
        )
    pictures.transform = timm.data.create_transform(**settings, is_training=False)
    _check_classes(path, len(pictures.reader.class_to_idx), getattr(model, "num_classes", None))
    return torch.utils.data.DataLoader(pictures, batch_size=batch)


def _check_classes(path: Path, found: int, expected: Any) -> None:
    """Labels are numbers of folders, so the model must have as many classes."""
    if not isinstance(expected, int) or not expected or found == expected:
        return
    if found > expected:
        raise DatasetError(
            f"--data {path}: it has {found} folders, and the model tells {expected} classes apart; "
            "give --num-classes, or the right folder"
        )
    warnings.warn(
        f"--data {path}: it has {found} folders, and the model tells {expected} classes apart; "
        "folders are numbered in order, so with one missing labels mean other classes",
        stacklevel=2,
    )


def _mode(channels: int) -> str:
    return "L" if channels == 1 else "RGB"


def _defaults(model: nn.Module | None) -> dict[str, Any]:
    try:
        import timm.data
    except ImportError as error:
        raise _no_timm() from error
    settings: dict[str, Any] = timm.data.resolve_data_config({}, model=model)
    return settings


def _no_timm() -> MissingExtra:
    return MissingExtra(
        "pictures are prepared by timm, which is not installed: pip install 'passportize[timm]'"
    )


def _numbers(text: str, option: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InvalidArgument(f"{option} {text}: give numbers with commas, 0.5,0.5,0.5 say") from (
            None
        )
