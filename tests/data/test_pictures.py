"""CIFAR and Caltech, read by torchvision from small files in the right format."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("torchvision")

from PIL import Image
from torchvision import datasets

from passportize.data.pictures import load_caltech, load_cifar
from passportize.errors import DatasetError, InvalidArgument

FOLDERS = {10: "cifar-10-batches-py", 100: "cifar-100-python"}


def write_batch(path: Path, labels: list[int], key: str) -> str:
    """One file of CIFAR: a pickled dict of rows of 3,072 bytes; returns its checksum."""
    pixels = np.arange(len(labels) * 3072, dtype=np.int64).reshape(len(labels), 3072) % 251
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps({"data": pixels.astype(np.uint8), key: labels}))
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Both versions; torchvision is told the checksums of these files instead of the real ones."""
    ten, hundred = tmp_path / FOLDERS[10], tmp_path / FOLDERS[100]
    train = [
        (f"data_batch_{n}", write_batch(ten / f"data_batch_{n}", [n, 0], "labels"))
        for n in range(1, 6)
    ]
    test = [("test_batch", write_batch(ten / "test_batch", [9, 8, 7], "labels"))]
    for folder, kind, names in ((ten, datasets.CIFAR10, "label_names"),):
        write_names(folder / "batches.meta", names, monkeypatch, kind)
    monkeypatch.setattr(datasets.CIFAR10, "train_list", train)
    monkeypatch.setattr(datasets.CIFAR10, "test_list", test)
    write_names(hundred / "meta", "fine_label_names", monkeypatch, datasets.CIFAR100)
    fine = [("train", write_batch(hundred / "train", [99, 3], "fine_labels"))]
    monkeypatch.setattr(datasets.CIFAR100, "train_list", fine)
    monkeypatch.setattr(
        datasets.CIFAR100,
        "test_list",
        [("test", write_batch(hundred / "test", [5], "fine_labels"))],
    )
    return tmp_path


def write_names(path: Path, key: str, monkeypatch: pytest.MonkeyPatch, kind: type) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps({key: ["a", "b"]}))
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setattr(kind, "meta", {"filename": path.name, "key": key, "md5": md5})


@pytest.mark.parametrize(
    ("classes", "split", "labels"),
    [
        (10, "train", [1, 0, 2, 0, 3, 0, 4, 0, 5, 0]),
        (10, "test", [9, 8, 7]),
        (100, "train", [99, 3]),
        (100, "test", [5]),
    ],
)
def test_cifar(cifar: Path, classes: int, split: str, labels: list[int]) -> None:
    images, found = load_cifar(cifar, split, classes=classes)
    assert images.shape == (len(labels), 3, 32, 32) and images.dtype is torch.float32
    assert found.dtype is torch.int64 and found.tolist() == labels
    # Red first, row by row, then green and blue.
    assert images[0, :, 0, :3].mul(255).round().tolist() == [
        [plane * 1024 % 251 + column for column in range(3)] for plane in range(3)
    ]


@pytest.mark.parametrize("classes", [10, 100])
def test_cifar_that_is_not_the_published_one(cifar: Path, classes: int) -> None:
    name = "test_batch" if classes == 10 else "test"
    write_batch(cifar / FOLDERS[classes] / name, [1], "labels")
    with pytest.raises(DatasetError, match=rf"CIFAR{classes} is not under .*download=True"):
        load_cifar(cifar, classes=classes)


def test_what_is_not_there_leaves_nothing(tmp_path: Path) -> None:
    for load, classes in ((load_cifar, 100), (load_caltech, 101), (load_caltech, 256)):
        with pytest.raises(DatasetError, match=r"torchvision\.datasets\..*download=True"):
            load(tmp_path, classes=classes)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def caltech(tmp_path: Path) -> Path:
    """Two classes of five pictures each, in both layouts, and what is no class."""
    for folder, kinds, pattern in (
        (
            "caltech101/101_ObjectCategories",
            ("ant", "BACKGROUND_Google", "yak"),
            "image_{:04d}.jpg",
        ),
        ("caltech256/256_ObjectCategories", ("001.ak47", "002.flag"), "{1:03d}_{0:04d}.jpg"),
    ):
        for label, kind in enumerate(kinds):
            place = tmp_path / folder / kind
            place.mkdir(parents=True)
            for number in range(1, 6):
                mode, colour = ("L", 200) if number == 1 else ("RGB", (250, 0, 0))
                picture = Image.new(mode, (40, 20 + number), colour)
                picture.save(place / pattern.format(number, label + 1))
    return tmp_path


@pytest.mark.parametrize("classes", [101, 256])
def test_caltech(caltech: Path, classes: int) -> None:
    parts = [load_caltech(caltech, split, classes=classes, size=8) for split in ("train", "test")]
    for (images, labels), each in zip(parts, (4, 1), strict=True):
        assert images.shape == (2 * each, 3, 8, 8) and images.dtype is torch.float32
        assert labels.bincount().tolist() == [each, each]
    images = torch.cat([part[0] for part in parts])
    red = (images[:, 0] - images[:, 1]).mean((1, 2)) > 0.9
    grey = (images[:, 0] - images[:, 1]).abs().mean((1, 2)) < 0.05
    assert int(red.sum()) == 8 and int(grey.sum()) == 2


def test_clutter_is_no_class(caltech: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = caltech / "caltech256" / "256_ObjectCategories"
    for number in range(3, 258):
        name = "257.clutter" if number == 257 else f"{number:03d}.thing"
        (place / name).mkdir()
    for number in range(1, 6):
        Image.new("RGB", (9, 9)).save(place / "257.clutter" / f"257_{number:04d}.jpg")
    _, labels = load_caltech(caltech, classes=256, size=8)
    assert labels.tolist() == [0] * 4 + [1] * 4


def test_a_picture_that_cannot_be_read(caltech: Path) -> None:
    for path in (caltech / "caltech101" / "101_ObjectCategories" / "ant").glob("*.jpg"):
        path.write_bytes(b"no picture")
    with pytest.raises(DatasetError, match="Caltech101"):
        load_caltech(caltech)


def test_arguments(tmp_path: Path) -> None:
    for call, said in (
        (lambda: load_cifar(tmp_path, classes=20), "10 and 100"),
        (lambda: load_caltech(tmp_path, classes=102), "101 and 256"),
        (lambda: load_caltech(tmp_path, size=0), "size=0"),
        (lambda: load_cifar(tmp_path, "validation"), "'train' or 'test'"),
    ):
        with pytest.raises(InvalidArgument, match=said):
            call()
