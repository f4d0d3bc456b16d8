"""Images with labels, both splits ready for a model: what demo and benchmarks train on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from passportize.data.digits import load_digits_images
from passportize.data.fashion_mnist import load_fashion_mnist
from passportize.errors import InvalidArgument

__all__ = ["ImageData", "batches", "digits_data", "fashion_data"]


@dataclass(frozen=True)
class ImageData:
    """Images and labels of both splits, normalised by mean and deviation of the train split.

    Attributes:
        name: What the data are, for reports.
        train_images, test_images: float32 ``[N, 1, size, size]``.
        train_labels, test_labels: int64 ``[N]``.
        classes: Number of classes.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: int = 10

    @classmethod
    def normalised(
        cls,
        name: str,
        train: tuple[Tensor, Tensor],
        test: tuple[Tensor, Tensor],
        size: int,
    ) -> ImageData:
        """From images in [0, 1], scaled bilinearly to ``size`` pixels a side."""
        if not isinstance(size, int) or size < 1:
            raise InvalidArgument(f"size={size!r} must be a whole number of pixels")
        images = [_resized(split[0], size) for split in (train, test)]
        mean, deviation = images[0].mean(), images[0].std()
        first, second = ((split - mean) / deviation for split in images)
        return cls(name, first, train[1], second, test[1], int(train[1].max()) + 1)


def digits_data(size: int = 32) -> ImageData:
    """The 1,797 handwritten digits of scikit-learn: 1,438 to train, 359 to test; offline.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    train, test = load_digits_images("train"), load_digits_images("test")
    return ImageData.normalised("the handwritten digits of scikit-learn", train, test, size)


def fashion_data(root: str | os.PathLike[str], size: int = 32) -> ImageData:
    """Fashion-MNIST from a folder with its four idx files.

    Raises:
        DatasetError: A file is missing or damaged.
    """
    train, test = load_fashion_mnist("train", root), load_fashion_mnist("test", root)
    return ImageData.normalised("Fashion-MNIST", train, test, size)


def batches(images: Tensor, labels: Tensor, size: int = 512) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of images and labels, as :func:`passportize.verify` takes them."""
    yield from zip(torch.split(images, size), torch.split(labels, size), strict=True)


def _resized(images: Tensor, size: int) -> Tensor:
    if images.shape[-2:] == (size, size):
        return images
    return functional.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
