from __future__ import annotations

import gzip
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from passportize.data.digits import load_digits_images
from passportize.data.fashion_mnist import load_fashion_mnist, read_idx
from passportize.data.kicad import KiCadShapes
from passportize.data.kicad_cache import build_kicad_cache, cache_folder, load_kicad_cache
from passportize.data.modelnet import load_modelnet
from passportize.data.pictures import load_caltech, load_cifar
from passportize.data.shapenet import load_shapenet
from passportize.data.shapes import SHAPE_CLASSES, generate_shapes
from passportize.data.splits import family_split, stratified_split
from passportize.data.vrml import read_triangles, sample_surface, triangle_areas
from passportize.data.vrml_nodes import VrmlError
from passportize.errors import DatasetError, InvalidArgument, MissingExtra

# --- splits ----------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 4), min_size=1, max_size=80), st.integers(0, 3))
def test_stratified_split_is_a_partition(labels, seed):
    labels = torch.tensor(labels)
    train, test = stratified_split(labels, test_fraction=0.3, seed=seed)
    assert sorted(train.tolist() + test.tolist()) == list(range(len(labels)))
    for label in labels.unique():
        size = int((labels == label).sum())
        assert int((labels[test] == label).sum()) == round(0.3 * size)
    again = stratified_split(labels, test_fraction=0.3, seed=seed)
    assert torch.equal(train, again[0]) and torch.equal(test, again[1])


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from("abcdef")), min_size=1, max_size=80))
def test_family_split_keeps_families_together(items):
    labels = torch.tensor([label for label, _ in items])
    families = [family for _, family in items]
    train, test = family_split(labels, families, seed=1)
    assert sorted(train.tolist() + test.tolist()) == list(range(len(items)))
    groups = [{(int(labels[i]), families[i]) for i in part.tolist()} for part in (train, test)]
    assert not groups[0] & groups[1]


def test_splits_name_bad_arguments():
    labels = torch.tensor([0, 1])
    with pytest.raises(InvalidArgument, match="test_fraction"):
        stratified_split(labels, test_fraction=1.0)
    with pytest.raises(InvalidArgument, match="test_fraction"):
        family_split(labels, ["a", "b"], test_fraction=0.0)
    with pytest.raises(InvalidArgument, match="2 labels but 1 families"):
        family_split(labels, ["a"])


# --- images ----------------------------------------------------------------------------------


def test_digits():
    images, labels = load_digits_images("train")
    held_out, held_out_labels = load_digits_images("test")
    assert images.shape == (1438, 1, 8, 8) and held_out.shape == (359, 1, 8, 8)
    assert images.dtype == torch.float32 and labels.dtype == torch.int64
    assert float(images.min()) == 0.0 and float(images.max()) == 1.0
    assert held_out_labels.bincount().min() >= 35
    other = load_digits_images("test", seed=1)[0]
    assert not torch.equal(held_out, other)
    with pytest.raises(InvalidArgument, match="'train' or 'test'"):
        load_digits_images("validation")


@pytest.mark.parametrize(
    ("module", "call", "extra"),
    [
        ("sklearn.datasets", lambda root: load_digits_images(), r"passportize\[demo\]"),
        ("torchvision.datasets", load_cifar, r"passportize\[vision\]"),
        ("torchvision.datasets", load_caltech, r"passportize\[vision\]"),
    ],
)
def test_missing_extras_say_what_to_install(monkeypatch, tmp_path, module, call, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=extra):
        call(tmp_path)


def test_modelnet_arguments(tmp_path):
    with pytest.raises(InvalidArgument, match="10 and 40"):
        load_modelnet(tmp_path, classes=20)
    with pytest.raises(InvalidArgument, match="'train' or 'test'"):
        load_shapenet(tmp_path, "validation")


def write_idx(path: Path, values: np.ndarray, compress: bool) -> None:
    header = b"\x00\x00\x08" + bytes([values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    data = header + values.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if compress else data)


@pytest.mark.parametrize("compress", [True, False])
def test_fashion_mnist(tmp_path, compress):
    images = np.arange(3 * 28 * 28).reshape(3, 28, 28) % 256
    suffix = ".gz" if compress else ""
    write_idx(tmp_path / f"t10k-images-idx3-ubyte{suffix}", images, compress)
    write_idx(tmp_path / f"t10k-labels-idx1-ubyte{suffix}", np.array([3, 1, 2]), compress)
    read, labels = load_fashion_mnist("test", tmp_path)
    assert torch.equal(read[:, 0], torch.from_numpy(images).float() / 255)
    assert labels.tolist() == [3, 1, 2]
    with pytest.raises(DatasetError, match=r"train-images.*dataset-fashion-mnist"):
        load_fashion_mnist("train", tmp_path)
    write_idx(tmp_path / f"t10k-labels-idx1-ubyte{suffix}", np.array([3, 1]), compress)
    with pytest.raises(DatasetError, match="do not fit together"):
        load_fashion_mnist("test", tmp_path)


@given(st.binary(max_size=40))
@settings(max_examples=200)
def test_damaged_idx_files(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "damaged.idx"
    for content in (data, b"\x00\x00\x08" + data, b"\x1f\x8b" + data):
        path.write_bytes(content)
        try:
            read_idx(path)
        except DatasetError:
            continue
        assert content[:3] == b"\x00\x00\x08"


# --- generated shapes ------------------------------------------------------------------------


def test_generated_shapes():
    clouds, labels = generate_shapes(4, 64, seed=3)
    assert clouds.shape == (4 * len(SHAPE_CLASSES), 64, 3)
    assert labels.bincount().tolist() == [4] * len(SHAPE_CLASSES)
    torch.testing.assert_close(clouds.norm(dim=2).amax(dim=1), torch.ones(len(clouds)))
    again, again_labels = generate_shapes(4, 64, seed=3)
    assert torch.equal(clouds, again) and torch.equal(labels, again_labels)
    assert not torch.equal(clouds, generate_shapes(4, 64, seed=4)[0])
    with pytest.raises(InvalidArgument):
        generate_shapes(0)


def test_generated_shapes_are_drawn_by_area():
    clouds, labels = generate_shapes(1, 20000, noise=0.0, turn=False)
    cylinder = clouds[labels == SHAPE_CLASSES.index("cylinder")][0]
    cylinder = cylinder - (cylinder.amin(dim=0) + cylinder.amax(dim=0)) / 2
    radius = cylinder[:, :2].norm(dim=1)
    height = float(cylinder[:, 2].max() - cylinder[:, 2].min())
    wide = float(radius.max())
    on_lids = float((cylinder[:, 2].abs() > 0.4999 * height).float().mean())
    assert on_lids == pytest.approx(wide / (wide + height), abs=0.02)


# --- VRML ------------------------------------------------------------------------------------

SQUARE = """Shape { appearance Appearance { material DEF RED Material { diffuseColor 1 0 0 } }
  geometry IndexedFaceSet { creaseAngle 0.5 solid FALSE # a comment with [ and {
    coord DEF CORNERS Coordinate { point [0 0 0, 1 0 0, 1 1 0, 0,1,0] }
    coordIndex [0 1 2 3 -1] } }"""


def scene(body: str) -> bytes:
    return b"#VRML V2.0 utf8\n" + body.encode()


def test_polygons_become_triangles():
    triangles = read_triangles(scene(SQUARE))
    assert triangles.shape == (2, 3, 3)
    assert triangle_areas(triangles).sum() == pytest.approx(1.0)


def test_faces_of_mixed_length_and_open_end():
    text = SQUARE.replace("0 1 2 3 -1", "0 1 2 -1 0 1 -1 0, 1, 2, 3")
    assert len(read_triangles(scene(text))) == 3


@pytest.mark.parametrize(
    ("fields", "corner"),
    [
        ("translation 1 2 3", (2, 3, 3)),
        ("scale 2 3 4", (2, 3, 0)),
        ("rotation 0 0 1 1.5707963267948966", (-1, 1, 0)),
        ("rotation 0 0 1 1.5707963267948966 center 1 1 0", (1, 1, 0)),
        ("rotation 0 0 2 1.5707963267948966 translation 0 0 1 scale 2 1 1", (-1, 2, 1)),
        ("scale 2 1 1 scaleOrientation 0 0 1 1.5707963267948966", (1, 2, 0)),
    ],
)
def test_transforms(fields, corner):
    triangles = read_triangles(scene(f"Transform {{ {fields} children [ {SQUARE} ] }}"))
    np.testing.assert_allclose(triangles[0, 2], corner, atol=1e-12)


def test_nested_groups_switches_and_uses():
    used = "Shape { geometry IndexedFaceSet { coord USE CORNERS coordIndex [0,1,2,-1] } }"
    body = f"""Group {{ children [ Transform {{ translation 1 0 0 children {SQUARE} }} {used} ] }}
      Switch {{ whichChoice 1 choice [ {used} {used} {used} ] }}
      Switch {{ choice [ {used} ] }}
      LOD {{ level [ {used} {used} ] range [ 10 ] }}
      DEF LAST {used}
      USE LAST
      WorldInfo {{ title "a string with {{ and ] and #" info [ "a", "b" ] type NULL }}
      Shape {{ geometry IndexedLineSet {{ coord USE CORNERS coordIndex [0 1 -1] }} }}
      Shape {{ appearance Appearance {{ material USE RED }} }}
      ROUTE A.x TO B.y"""
    triangles = read_triangles(scene(body))
    assert len(triangles) == 2 + 1 + 1 + 1 + 2


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"#VRML V1.0 ascii\nSeparator {}", "no VRML 2.0"),
        (b"", "no VRML 2.0"),
        (scene(SQUARE[:-1]), "ends in the middle"),
        (scene("Shape { geometry USE NOWHERE }"), "undefined node NOWHERE"),
        (scene("Shape { geometry Box { size 1 1 1 } }"), "Box is not read"),
        (scene('Inline { url "other.wrl" }'), "Inline is not read"),
        (scene("PROTO Bolt [] { Group {} }"), "PROTO is not read"),
        (scene(SQUARE.replace("0 1 2 3", "0 1 2 4")), r"outside 0\.\.3"),
        (scene(SQUARE.replace("0 1 2 3", "0 1 2 -7")), r"outside 0\.\.3"),
        (scene(SQUARE.replace("0,1,0]", "0,1]")), "no list of points"),
        (scene(SQUARE.replace("0,1,0]", "0,1-,0]")), "no number"),
        (scene(SQUARE.replace("0,1,0]", "0,1e999,0]")), "not finite"),
        (scene(SQUARE.replace("point [0 0 0, 1 0 0, 1 1 0, 0,1,0]", "point TRUE")), "no list of"),
        (scene("Group { children [ " * 500), "nested more than 200"),
        (scene("Transform { scale 1 2 }"), "scale needs 3 numbers"),
        (scene("} }"), "expected a node"),
    ],
)
def test_bad_scenes(data, message):
    with pytest.raises(VrmlError, match=message):
        read_triangles(data)


@given(st.lists(st.sampled_from([*SQUARE.split(), "Transform", "Switch", "children", "]", "}"])))
@settings(max_examples=300)
def test_shuffled_scenes_never_raise_anything_else(words):
    try:
        triangles = read_triangles(scene(" ".join(words)))
    except VrmlError:
        return
    assert triangles.shape[1:] == (3, 3)


def test_points_are_drawn_by_area():
    corners = np.array(
        [[[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[5, 0, 0], [8, 0, 0], [5, 1, 0]]], float
    )
    points = sample_surface(corners, 20000, np.random.default_rng(0))
    assert (points[:, 0] > 4).mean() == pytest.approx(0.75, abs=0.02)
    first = points[points[:, 0] < 4]
    np.testing.assert_allclose(first.mean(axis=0), [1 / 3, 1 / 3, 0], atol=0.02)
    with pytest.raises(VrmlError, match="no area"):
        sample_surface(np.zeros((2, 3, 3)), 5, np.random.default_rng(0))
    with pytest.raises(VrmlError, match="no area"):
        sample_surface(np.empty((0, 3, 3)), 5, np.random.default_rng(0))


# --- KiCad -----------------------------------------------------------------------------------


def write_library(root: Path) -> None:
    """Folders as the Debian package has them, with rectangles for solids and two bad files."""
    folders = {
        "Package_SO": 6,
        "Connector_PinHeader_1.00mm": 3,
        "Connector_PinHeader_2.54mm": 3,
        "Buzzer": 2,
    }
    for number, (folder, count) in enumerate(folders.items()):
        (root / f"{folder}.3dshapes").mkdir(parents=True)
        for i in range(count):
            text = f"Transform {{ scale {number + 1} {i + 1} 1 children [ {SQUARE} ] }}"
            family = "SOIC" if i < 4 else "TSSOP"
            path = root / f"{folder}.3dshapes" / f"{family}-{i + 1}_pins.wrl"
            path.write_bytes(scene(text))
    # The same extents again: a duplicate.
    path = root / "Package_SO.3dshapes" / "SOIC-99_pins.wrl"
    path.write_bytes(scene(f"Transform {{ scale 1 1 1 children [ {SQUARE} ] }}"))
    (root / "Package_SO.3dshapes" / "broken.wrl").write_bytes(b"no model")
    (root / "Package_SO.3dshapes" / "flat.wrl").write_bytes(scene("Group { children [] }"))


@pytest.mark.parametrize("processes", [1, 2])
def test_kicad_shapes(tmp_path, processes):
    write_library(tmp_path / "usr" / "share")
    calls = []
    shapes = KiCadShapes.load(
        tmp_path / "usr",
        points=128,
        at_least=5,
        at_most=6,
        cache=tmp_path / "deep" / "cache.safetensors",
        processes=processes,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(i, 17) for i in range(1, 18)]
    assert shapes.classes == ("Connector_PinHeader", "Package_SO")
    assert shapes.points.shape == (12, 128, 3) and shapes.labels.bincount().tolist() == [6, 6]
    torch.testing.assert_close(shapes.points.norm(dim=2).amax(dim=1), torch.ones(12))
    assert "Package_SO/SOIC-1_pins" in shapes.names
    assert shapes.families[shapes.names.index("Package_SO/SOIC-1_pins")] == "Package_SO/SOIC-_pins"
    cached = load_kicad_cache(tmp_path / "deep" / "cache.safetensors")
    assert dict(cached.failures) == {
        "Package_SO/broken": "no VRML 2.0 file: the first line is not '#VRML V2.0 ...'",
        "Package_SO/flat": "the surface has no area",
    }
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["cache.safetensors"]
    again = KiCadShapes.load(
        points=128, at_least=5, at_most=6, cache=tmp_path / "deep" / "cache.safetensors"
    )
    assert torch.equal(again.points, shapes.points) and again.names == shapes.names
    for by in ("random", "family"):
        train, test = (shapes.split(part, by=by) for part in ("train", "test"))
        assert len(train[0]) + len(test[0]) == 12 and len(test[1]) >= 2
    with pytest.raises(InvalidArgument, match="'random' or 'family'"):
        shapes.split(by="name")


def test_kicad_shapes_from_a_debian_package(tmp_path):
    root = tmp_path / "tree"
    write_library(root / "usr/share/kicad/3dmodels")
    (root / "DEBIAN").mkdir()
    (root / "DEBIAN/control").write_text(
        "Package: small\nVersion: 1\nArchitecture: all\nMaintainer: Nobody <nobody@example.org>\n"
        "Description: a small package\n"
    )
    try:
        subprocess.run(
            ["dpkg-deb", "--build", str(root), str(tmp_path / "small.deb")],
            check=True,
            capture_output=True,
        )
    except FileNotFoundError:
        pytest.skip("needs dpkg-deb")
    packed = build_kicad_cache(tmp_path / "small.deb", tmp_path / "a.safetensors")
    unpacked = build_kicad_cache(root, tmp_path / "b.safetensors")
    assert packed.names == unpacked.names and packed.failures == unpacked.failures
    assert torch.equal(packed.points, unpacked.points)
    (tmp_path / "bad.deb").write_bytes(b"no package")
    with pytest.raises(DatasetError, match="no readable Debian package"):
        build_kicad_cache(tmp_path / "bad.deb", tmp_path / "c.safetensors")


def test_kicad_errors_say_the_next_step(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "passportize"
    with pytest.raises(DatasetError, match="apt-get download kicad-packages3d"):
        KiCadShapes.load()
    with pytest.raises(DatasetError, match="does not exist"):
        KiCadShapes.load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="no readable"):
        KiCadShapes.load(tmp_path / "empty")
    assert not (tmp_path / "passportize").exists()
    write_library(tmp_path / "library")
    with pytest.raises(DatasetError, match="lower at_least"):
        KiCadShapes.load(tmp_path / "library")
    target = tmp_path / "passportize" / "kicad-shapes-1.safetensors"
    target.write_bytes(target.read_bytes()[:-20])
    with pytest.raises(DatasetError, match="damaged; delete it"):
        KiCadShapes.load()
    with pytest.raises(InvalidArgument, match="points=0"):
        KiCadShapes.load(points=0)
    with pytest.raises(InvalidArgument, match="processes=0"):
        build_kicad_cache(tmp_path, target, processes=0)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == Path.home() / ".cache" / "passportize"


def test_an_interrupted_write_leaves_no_file(tmp_path, monkeypatch):
    write_library(tmp_path / "library")
    monkeypatch.setattr("os.fsync", lambda descriptor: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(DatasetError, match="OSError"):
        build_kicad_cache(tmp_path / "library", tmp_path / "out" / "cache.safetensors")
    assert list((tmp_path / "out").iterdir()) == []
