"""Pictures with which a run puts the signature into trained weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

timm = pytest.importorskip("timm")

import passportize as pp  # noqa: E402
from passportize.errors import DatasetError, InvalidArgument  # noqa: E402
from passportize.integrations.timm.options import parse_options  # noqa: E402
from passportize.integrations.timm.pictures import calibration_pictures  # noqa: E402
from passportize.integrations.timm.session import prepare  # noqa: E402

PASSPORT = pp.Passport.generate("Acme", date="2026-11-28", secret=bytes(range(32)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    image = pytest.importorskip("PIL.Image")
    generator = torch.Generator().manual_seed(0)
    for kind in "ab":
        (tmp_path / "data" / kind).mkdir(parents=True)
        for number in range(20):
            pixels = torch.randint(0, 255, (40, 40, 3), generator=generator).byte().numpy()
            image.fromarray(pixels).save(tmp_path / "data" / kind / f"{number}.png")
    return tmp_path / "data"


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_they_are_prepared_as_the_script_does_and_used(folder: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=2)
    arguments = ("--img-size", "48", "--mean", "0", "0", "0", "--std", "1", "1", "1", "--lr", "1")
    batches = list(calibration_pictures(folder, model, arguments))
    assert [tuple(batch.shape) for batch in batches] == [(32, 3, 48, 48), (8, 3, 48, 48)]
    assert float(batches[0].min()) >= 0 and float(batches[0].max()) <= 1
    model.train()
    model(batches[0])
    config = pp.PassportConfig.signature(bits=100)
    prepare(model, PASSPORT, config=config, calibration=batches)
    assert pp.signature_accuracy(model) == 1.0


def test_a_folder_without_pictures(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="one folder of pictures per class"):
        calibration_pictures(tmp_path / "empty", timm.create_model("test_resnet"), ())


@pytest.mark.parametrize(
    "more", [("--calibration", "nowhere"), ("--calibration", ".", "--no-embed")]
)
def test_options_that_make_no_sense(more: tuple[str, ...], tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.touch()
    with pytest.raises(InvalidArgument, match="--calibration"):
        parse_options(["--passport", "p", *more, str(script)])
