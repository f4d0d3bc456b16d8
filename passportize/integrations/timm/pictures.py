"""Pictures for a look at what the layers of a trained model compute, prepared as a run does."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from passportize.errors import DatasetError
from passportize.utils.trees import place_of

__all__ = ["calibration_pictures"]

_COUNT, _BATCH = 256, 32


def calibration_pictures(folder: Path, model: nn.Module, arguments: Sequence[str]) -> Iterable[Any]:
    """Batches of some pictures, evenly from all classes, on the model's device and in its type.

    Args:
        folder: Pictures, one folder per class.
        model: The model, with timm's ``pretrained_cfg``.
        arguments: The script's command line: its ``--img-size``, ``--mean`` and the like count.

    Raises:
        DatasetError: The folder holds no pictures.
    """
    import timm.data
    import torch.utils.data

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--img-size", type=int)
    parser.add_argument("--input-size", type=int, nargs=3)
    parser.add_argument("--mean", type=float, nargs="+")
    parser.add_argument("--std", type=float, nargs="+")
    parser.add_argument("--crop-pct", type=float)
    given, _ = parser.parse_known_args(list(arguments))
    settings = {name: value for name, value in vars(given).items() if value is not None}
    try:
        pictures = timm.data.create_dataset("", root=str(folder), split="validation")
    except (OSError, RuntimeError) as error:
        raise DatasetError(
            f"--calibration {folder}: {error}; give one folder of pictures per class"
        ) from None
    prepared = timm.data.resolve_data_config(settings, model=model)
    pictures.transform = timm.data.create_transform(**prepared, is_training=False)
    count = min(_COUNT, len(pictures))
    chosen = [index * len(pictures) // count for index in range(count)]
    subset = torch.utils.data.Subset(pictures, chosen)
    kind = next((each.dtype for each in model.parameters()), torch.float32)
    place = place_of(model)
    loader = torch.utils.data.DataLoader(subset, batch_size=_BATCH)
    # Read once: they are looked at several times.
    return [images.to(place, kind) for images, _ in loader]
