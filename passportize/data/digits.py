"""The handwritten digits that ship inside scikit-learn: real images, no download."""

from __future__ import annotations

import torch
from torch import Tensor

from passportize.data.splits import select_split, stratified_split
from passportize.errors import MissingExtra

__all__ = ["load_digits_images"]


def load_digits_images(split: str = "train", seed: int = 0) -> tuple[Tensor, Tensor]:
    """Load the 1,797 handwritten digits of scikit-learn, 8 x 8 pixels each.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine
    Learning Repository, 1998.

    Args:
        split: ``"train"`` (80 % of each class) or ``"test"`` (the rest).
        seed: Seed of the stratified split; the same seed always gives the same split.

    Returns:
        Images, float32 ``[N, 1, 8, 8]`` in [0, 1], and labels, int64 ``[N]`` in 0..9.

    Raises:
        InvalidArgument: ``split`` is neither ``"train"`` nor ``"test"``.
        MissingExtra: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtra(
            "the digits come with scikit-learn, which is not installed: "
            "pip install 'passportize[demo]'"
        ) from error
    digits = load_digits()
    images = torch.as_tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16.0
    labels = torch.as_tensor(digits.target, dtype=torch.int64)
    index = select_split(split, *stratified_split(labels, seed=seed))
    return images[index].contiguous(), labels[index].contiguous()
