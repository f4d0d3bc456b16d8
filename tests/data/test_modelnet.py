"""ModelNet and ShapeNet, read from small files in their published layouts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from passportize.data.modelnet import load_modelnet, read_off
from passportize.data.shapenet import SHAPENET_FOLDER, load_shapenet
from passportize.errors import DatasetError, InvalidArgument

TEN = [
    *("bathtub", "bed", "chair", "desk", "dresser"),
    *("monitor", "night_stand", "sofa", "table", "toilet"),
]
SIXTEEN = {f"Category{number:02d}": f"{2691156 + number:08d}" for number in range(16)}
TEN10 = "ModelNet10"
CORNERS = torch.tensor([[x, y, z] for x in (0.0, 1.0) for y in (0.0, 1.0) for z in (0.0, 1.0)])
FACES = (
    (0, 1, 3), (0, 3, 2), (4, 6, 7), (4, 7, 5), (0, 4, 5), (0, 5, 1),
    (2, 3, 7), (2, 7, 6), (0, 2, 6), (0, 6, 4), (1, 5, 7), (1, 7, 3),
)  # fmt: skip


def height_of(label: int) -> float:
    """A box of each class has its own height over a base of one by two."""
    return 1.0 + label


def write_box(path: Path, label: int, header: str = "OFF\n") -> None:
    """A box as an Object File Format mesh of triangles."""
    corners = CORNERS * torch.tensor([1.0, 2.0, height_of(label)]) + 5.0
    lines = [" ".join(f"{value:.6f}" for value in corner) for corner in corners.tolist()]
    lines += [f"3 {a} {b} {c}" for a, b, c in FACES]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{header}{len(CORNERS)} {len(FACES)} 0\n" + "\n".join(lines) + "\n")


@pytest.fixture
def modelnet(tmp_path: Path) -> Path:
    """Ten classes with two boxes for training and one for the test."""
    (tmp_path / "ModelNet10").mkdir()
    (tmp_path / "ModelNet10" / "README.txt").write_text("as in the archive")
    for label, name in enumerate(TEN):
        for split, count in (("train", 2), ("test", 1)):
            for number in range(count):
                file = tmp_path / "ModelNet10" / name / split / f"{name}_{number + 1:04d}.off"
                # Some files of the real set have no line break behind the first word.
                write_box(file, label, "OFF" if number else "OFF\n")
    return tmp_path


@pytest.mark.parametrize(("split", "each"), [("train", 2), ("test", 1)])
def test_modelnet_is_read_from_meshes(modelnet: Path, split: str, each: int) -> None:
    clouds, labels = load_modelnet(modelnet, split, points=256)
    assert clouds.shape == (10 * each, 256, 3) and clouds.dtype is torch.float32
    assert labels.dtype is torch.int64 and labels.bincount().tolist() == [each] * 10
    assert_unit_ball(clouds)
    for cloud, label in zip(clouds, labels.tolist(), strict=True):
        extents = cloud.amax(0) - cloud.amin(0)
        expected = torch.tensor([1.0, 2.0, height_of(label)])
        assert torch.allclose(extents / extents[1], expected / 2, rtol=0.1)
        # Points of a closed box lie on its six sides.
        sides = ((cloud - cloud.amin(0)) < 1e-4) | ((cloud.amax(0) - cloud) < 1e-4)
        assert sides.any(1).double().mean() > 0.9


def test_modelnet_draws_the_same_points_for_a_seed(modelnet: Path) -> None:
    state = torch.get_rng_state()
    first, again, other = (load_modelnet(modelnet, "test", points=32, seed=s)[0] for s in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_modelnet_is_read_from_its_own_folder_too(modelnet: Path) -> None:
    first, again = (load_modelnet(root, points=8)[0] for root in (modelnet, modelnet / TEN10))
    assert torch.equal(first, again)


@pytest.mark.parametrize("inside", [".", "nowhere"])
def test_modelnet_that_is_not_there(tmp_path: Path, inside: str) -> None:
    with pytest.raises(DatasetError, match=r"ModelNet40 is not under .* get ModelNet40\.zip"):
        load_modelnet(tmp_path / inside, classes=40)


def test_ten_classes_are_not_taken_for_forty(modelnet: Path) -> None:
    with pytest.raises(DatasetError, match=r"10 folders .* 40 are expected"):
        load_modelnet(modelnet / TEN10, classes=40)


def test_a_class_without_test_meshes_is_named(modelnet: Path) -> None:
    for path in (modelnet / TEN10 / "bed" / "test").glob("*"):
        path.unlink()
    with pytest.raises(DatasetError, match="bed/test holds no"):
        load_modelnet(modelnet, "test")


@pytest.mark.parametrize(
    "text",
    [
        "PLY\n",
        "OFF\n",
        "OFF\n3 1 0\n0 0 0 1 0 0 0 1 0",
        "OFF\n3 1 0\n0 0 0 1 0 0 0 1 0\n3 0 1 7",
        "OFF\n3 1 0\n0 0 0 1 0 0 0 1 0\n3 0 1 -1",
        "OFF\n3 1 0\n0 0 0 1 0 0 0 1 nan\n3 0 1 2",
        "OFF\n3 1 0\n0 0 0 1 0 0 2 0 0\n3 0 1 2",
        "OFF\n3 1 0\n0 0 0 1 0 0 0 1 0\n5 0 1 2",
        "OFF\n9999999999999 1 0\n0 0 0",
    ],
)
def test_a_damaged_mesh_is_named(modelnet: Path, text: str) -> None:
    (modelnet / TEN10 / "bed" / "train" / "bed_0001.off").write_text(text)
    with pytest.raises(DatasetError, match=r"bed_0001\.off is no mesh"):
        load_modelnet(modelnet, points=8)


def test_polygons_are_cut_into_fans(tmp_path: Path) -> None:
    path = tmp_path / "house.off"
    path.write_text("OFF\n5 2 0\n0 0 0\n1 0 0\n1 1 0\n0 1 0\n2 2 0\n4 0 1 2 3\n3 2 3 4\n")
    triangles = read_off(path)
    assert triangles.shape == (3, 3, 3)
    assert triangles[1].tolist() == [[0, 0, 0], [1, 1, 0], [0, 1, 0]]


def assert_unit_ball(clouds: Tensor) -> None:
    assert clouds.mean(1).abs().max() < 1e-5
    torch.testing.assert_close(clouds.norm(dim=2).amax(1), torch.ones(len(clouds)))


@pytest.fixture
def shapenet(tmp_path: Path) -> Path:
    """Two clouds of each of the sixteen categories for training, one for each other split."""
    raw = tmp_path / SHAPENET_FOLDER
    raw.mkdir()
    (raw / "synsetoffset2category.txt").write_text(
        "".join(f"{name}\t{folder}\n" for name, folder in SIXTEEN.items())
    )
    for split, count in (("train", 2), ("val", 1), ("test", 1)):
        names = []
        for label, folder in enumerate(SIXTEEN.values()):
            for number in range(count):
                name = f"{folder}/{split}{number}"
                names.append(f"shape_data/{name}")
                write_cloud(raw / f"{name}.txt", label)
        listed = raw / "train_test_split" / f"shuffled_{split}_file_list.json"
        listed.parent.mkdir(exist_ok=True)
        listed.write_text(json.dumps(names))
    return tmp_path


def write_cloud(path: Path, label: int) -> None:
    """Points on a line of 20 + ``label`` points: position, normal, part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 20 + label
    path.write_text(
        "".join(f"{index} 3.0 {label} 0.0 1.0 0.0 {index % 4}.0\n" for index in range(count))
    )


@pytest.mark.parametrize(("split", "each"), [("train", 3), ("test", 1)])
@pytest.mark.parametrize("points", [16, 64])
def test_shapenet_is_read_from_text(shapenet: Path, split: str, each: int, points: int) -> None:
    clouds, labels = load_shapenet(shapenet, split, points=points)
    assert clouds.shape == (16 * each, points, 3) and clouds.dtype is torch.float32
    assert labels.dtype is torch.int64 and labels.bincount().tolist() == [each] * 16
    assert_unit_ball(clouds)
    assert clouds[..., 0].std(1).min() > 0.1 and clouds[..., 1:].abs().max() < 1e-5
    distinct = [len(cloud[:, 0].unique()) for cloud in clouds]
    for label, seen in zip(labels.tolist(), distinct, strict=True):
        # Fewer points than asked for are drawn with repetition, more without.
        assert seen == points if points <= 20 else seen <= 20 + label


def test_shapenet_draws_the_same_points_for_a_seed(shapenet: Path) -> None:
    first, again, other = (load_shapenet(shapenet, "test", points=8, seed=s)[0] for s in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_shapenet_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"ShapeNet is not under .* get shapenetcore.*\.zip"):
        load_shapenet(tmp_path)


def test_a_list_that_names_a_missing_cloud(shapenet: Path) -> None:
    next((shapenet / SHAPENET_FOLDER / "02691156").glob("train*.txt")).unlink()
    with pytest.raises(DatasetError, match=r"ShapeNet .*02691156/train"):
        load_shapenet(shapenet)


@pytest.mark.parametrize("text", ["", "1 2 3\n", "a b c d e f g\n", "1 2 nan 0 0 0 1\n"])
def test_a_damaged_cloud(shapenet: Path, text: str) -> None:
    next((shapenet / SHAPENET_FOLDER / "02691156").glob("train*.txt")).write_text(text)
    with pytest.raises(DatasetError, match=r"ShapeNet .* cannot be read"):
        load_shapenet(shapenet)


def test_points_are_a_number() -> None:
    for load in (load_modelnet, load_shapenet):
        with pytest.raises(InvalidArgument, match="points=0"):
            load("nowhere", points=0)
