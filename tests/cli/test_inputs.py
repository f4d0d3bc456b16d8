"""Models by every name that timm takes, and pictures prepared the way the owner did."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("timm")
import timm
from PIL import Image

from passportize.cli.data_input import given_preprocessing, load_data, preparation
from passportize.cli.model_input import load_model
from passportize.cli.weights_input import wants_averaged
from passportize.errors import DatasetError, InvalidArgument
from passportize.release import Preprocessing

OWN = Preprocessing((3, 48, 40), (0.1, 0.2, 0.3), (0.5, 0.5, 0.5), "bilinear", 1.0)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("resnet81", "resnet18"),
        ("ResNet18", "resnet18"),
        ("test_resnt", "test_resnet"),
        ("vit_tiny_patch16_244", "vit_tiny_patch16_224"),
        ("resnet_18.a1_in1k", "resnet18"),
    ],
)
def test_a_name_that_is_nearly_one(name, meant):
    with pytest.raises(InvalidArgument, match=f"did you mean .*{meant}"):
        load_model(name)


def test_a_name_that_is_none():
    with pytest.raises(InvalidArgument, match="timm has no model 'zzzzzzzz'; Names are"):
        load_model("zzzzzzzz")


def test_a_folder_in_timms_layout_and_a_number_of_classes(tmp_path):
    from timm.models import save_for_hf

    save_for_hf(timm.create_model("test_resnet", num_classes=7), tmp_path, safe_serialization=True)
    assert load_model(f"local-dir:{tmp_path}").num_classes == 7
    assert load_model(f"local-dir:{tmp_path}", num_classes=3).num_classes == 3
    assert load_model("test_resnet", ["num_classes=5"]).num_classes == 5
    with pytest.raises(InvalidArgument, match="failed"):
        load_model(f"local-dir:{tmp_path / 'nowhere'}")


def test_whose_word_the_preparation_is():
    model = timm.create_model("test_resnet")
    usual, source = preparation(model, None, {})
    assert usual.input_size == (3, 160, 160) and "defaults" in source
    recorded, source = preparation(model, OWN, {})
    assert recorded == OWN and "claim" in source
    given = given_preprocessing(32, "0.5", "0.1,0.2,0.3")
    mixed, source = preparation(None, OWN, given)
    assert mixed.input_size == (3, 32, 32) and mixed.interpolation == "bilinear"
    assert mixed.mean == (0.5,) * 3 and mixed.std == (0.1, 0.2, 0.3)
    assert source == "by --img-size, --mean, --std; else as the claim records it"
    for wrong in ({"mean": (0.5, 0.5)}, {"std": (0.0,)}):
        with pytest.raises(InvalidArgument, match="preprocessing"):
            preparation(model, OWN, wrong)
    with pytest.raises(InvalidArgument, match="--mean x"):
        given_preprocessing(None, "x", None)


def pictures(folder, classes):
    for name in classes:
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (60, 50), (9, 9, 200)).save(folder / name / "0.png")
    return str(folder)


# timm leaves the files of its dataset open until they are collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_pictures_are_prepared_as_recorded(tmp_path):
    data = pictures(tmp_path / "two", ["cat", "dog"])
    model = timm.create_model("test_resnet", num_classes=2)
    ((images, _),) = load_data(data, model, 4, OWN)
    assert tuple(images.shape) == (2, 3, 48, 40)
    expected = (torch.tensor([9, 9, 200]) / 255 - torch.tensor(OWN.mean)) / 0.5
    assert torch.allclose(images[0, :, 20, 20], expected, atol=1e-4)
    grey = Preprocessing((1, 16, 16), (0.5,), (0.5,))
    model = timm.create_model("test_resnet", in_chans=1, num_classes=2)
    ((images, _),) = load_data(data, model, 4, grey)
    assert tuple(images.shape) == (2, 1, 16, 16)


def test_folders_and_classes_must_agree(tmp_path):
    model = timm.create_model("test_resnet", num_classes=2)
    three = pictures(tmp_path / "three", "abc")
    with pytest.raises(DatasetError, match=r"3 folders.*--num-classes"):
        load_data(three, model, 4)
    with pytest.warns(UserWarning, match="1 folders"):
        load_data(pictures(tmp_path / "one", "a"), model, 4)
    (tmp_path / "none").mkdir()
    with pytest.raises(DatasetError, match="one folder of pictures per class"):
        load_data(str(tmp_path / "none"), model, 4)


def test_averaged_weights_are_taken_where_there_are_any(tmp_path):
    file = tmp_path / "c.pth"
    weights = {"a": torch.zeros(2)}
    torch.save({"state_dict": weights}, file)
    assert wants_averaged(file, None) is False and wants_averaged(file, True) is True
    torch.save({"state_dict": weights, "state_dict_ema": weights}, file)
    assert wants_averaged(file, None) is True and wants_averaged(file, False) is False
