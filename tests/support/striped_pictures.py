"""Pictures that a small network tells apart at once, in folders as timm wants them."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

__all__ = ["write_pictures"]


def write_pictures(folder: Path, train: int = 24, val: int = 12) -> None:
    """Four kinds of noisy stripes, so many of each kind."""
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", train), ("val", val)):
        for kind in range(4):
            place = folder / split / "abcd"[kind]
            place.mkdir(parents=True)
            for number in range(count):
                pixels = torch.rand(3, 60, 60, generator=generator) * 120
                pixels[kind % 3, :, :: 4 * (1 + kind // 3)] += 120
                values = pixels.permute(1, 2, 0).byte().numpy()
                Image.fromarray(values).save(place / f"{number}.png")
