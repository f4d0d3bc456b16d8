"""Networks that were trained to be marked afterwards, and the data of owner and thief.

On Fashion-MNIST a ResNet-18 of half width without its pooling, a small ConvNeXt and a ViT of depth
4 with 16 patches, a few million parameters each; on the solids of KiCad's library a PointNet with
both transform nets. AdamW with one cycle; accuracies are those of the test part. Trained weights
are kept in a folder, so that a measurement that was stopped goes on.
"""

from __future__ import annotations

import functools
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models.convnext import ConvNeXt
from torch import Tensor, nn

from benchmarks.point_clouds.pointnet import shaken, turned
from examples.pointnet_model import PointNet
from passportize.data.fashion_mnist import load_fashion_mnist
from passportize.data.kicad import KiCadShapes
from passportize.data.parts import Part
from passportize.demo.recipe import accuracy

__all__ = [
    "NETWORKS",
    "Network",
    "Sets",
    "fashion",
    "load_or_train",
    "smoothed",
    "solids",
    "train",
    "trained",
]

_logger = logging.getLogger(__name__)

CALIBRATION = 512
"""Inputs with which the owner marks."""


@dataclass(frozen=True)
class Sets:
    """What owner and thief have.

    Attributes:
        owner: What the network is trained on.
        thief: Others, which neither training nor calibration saw, with labels.
        test: What accuracies are measured on.
    """

    owner: Part
    thief: Part
    test: Part

    @property
    def calibration(self) -> Tensor:
        """Inputs of the owner, evenly spread."""
        inputs = self.owner[0]
        return inputs[:: max(1, len(inputs) // CALIBRATION)][:CALIBRATION]


@functools.cache
def fashion() -> Sets:
    """Fashion-MNIST, standardised: 20,000 images for the owner, 2,000 others for the thief."""
    inputs, labels = load_fashion_mnist("train")
    test, test_labels = load_fashion_mnist("test")
    inputs, test = (inputs - 0.286) / 0.353, (test - 0.286) / 0.353
    return Sets(
        (inputs[:20_000], labels[:20_000]),
        (inputs[20_000:22_000], labels[20_000:22_000]),
        (test, test_labels),
    )


@functools.cache
def solids(root: str | None) -> Sets:
    """KiCad's solids, 256 points each, a fifth of the training part for the thief.

    The test part and what the thief has stand in fixed random poses.

    Args:
        root: The package or its unpacked folder; not needed where the solids were read before.

    Raises:
        DatasetError: They were not, and there is no root.
    """
    shapes = KiCadShapes.load(root, points=256)
    inputs, labels = shapes.split("train", by="random")
    generator = torch.Generator().manual_seed(99)
    order = torch.randperm(len(labels), generator=generator)
    inputs, labels = inputs[order], labels[order]
    theirs = len(labels) // 5
    test, test_labels = shapes.split("test", by="random")
    return Sets(
        (inputs[theirs:], labels[theirs:]),
        (turned(inputs[:theirs], generator), labels[:theirs]),
        (turned(test, generator), test_labels),
    )


@dataclass(frozen=True)
class Network:
    """How one is made and trained.

    Attributes:
        make: It, untrained.
        rate: The highest of the cycle.
        epochs: Passes over the owner's part.
        batch: Inputs per step.
        change: What is done to the inputs of a step.
        sets: Its data; given what :func:`solids` takes.
    """

    make: Callable[[], nn.Module]
    rate: float
    epochs: int = 3
    batch: int = 100
    change: Callable[[Tensor, torch.Generator], Tensor] = lambda inputs, generator: inputs
    sets: Callable[[str | None], Sets] = lambda root: fashion()


def _resnet() -> nn.Module:
    model: nn.Module = timm.create_model(
        "resnet18", num_classes=10, in_chans=1, channels=(32, 64, 128, 256), stem_width=32
    )
    model.maxpool = nn.Identity()
    return model


def _convnext() -> nn.Module:
    model = ConvNeXt(
        in_chans=1, num_classes=10, depths=(2, 2, 4, 2), dims=(64, 128, 256, 512), patch_size=4
    )
    # 32 pixels, so that one is left for the last stage.
    return nn.Sequential(nn.ZeroPad2d(2), model)


def _vit() -> nn.Module:
    model: nn.Module = timm.create_model(
        "vit_tiny_patch16_224", num_classes=10, in_chans=1, img_size=28, patch_size=7, depth=4
    )
    return model


NETWORKS: dict[str, Network] = {
    "resnet18, half width": Network(_resnet, 3e-3),
    "convnext": Network(_convnext, 3e-3),
    "vit, depth 4": Network(_vit, 2e-3),
    "pointnet": Network(lambda: PointNet(SOLIDS, width=512), 2e-3, 60, 32, shaken, solids),
}

SOLIDS = 29
"""Classes of KiCad's solids."""


def trained(name: str, seed: int, sets: Sets, folder: Path) -> tuple[nn.Module, float]:
    """A trained network and the seconds of processor time that its training took."""
    torch.manual_seed(seed)
    model = NETWORKS[name].make()
    return model, load_or_train(model, name, seed, sets, folder)


Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""Of a model, inputs and labels."""


def plain_loss(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy with smoothed labels."""
    return smoothed(model(inputs), labels)


def smoothed(outputs: Tensor, labels: Tensor) -> Tensor:
    """The criterion of all trainings here."""
    return nn.functional.cross_entropy(outputs, labels, label_smoothing=0.05)


def load_or_train(
    model: nn.Module,
    name: str,
    seed: int,
    sets: Sets,
    folder: Path,
    how: str = "",
    loss: Loss = plain_loss,
) -> float:
    """Give a network the weights that a training left in a folder; train it where there are none.

    Args:
        model: The network, as its training begins; changed in place.
        name: Of :data:`NETWORKS`.
        seed: Of the order.
        sets: Its data.
        folder: Where weights are kept.
        how: What tells them from those of another training of the same network.
        loss: What is made small.

    Returns:
        Seconds of processor time that the training took.
    """
    network = NETWORKS[name]
    kept = folder / f"{name.replace(', ', '_').replace(' ', '_')}_{seed}{how}.safetensors"
    note = kept.with_suffix(".json")
    if kept.exists():
        model.load_state_dict(load_file(kept))
        model.eval()
        return float(json.loads(note.read_text())["seconds"])
    start = time.process_time()
    train(model, network, sets.owner, network.epochs, network.rate, seed, loss)
    seconds = time.process_time() - start
    _logger.info("%s%s, seed %d: %.2f %%", name, how, seed, accuracy(model, *sets.test))
    folder.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps({"seconds": seconds}))
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, kept)
    return seconds


def train(
    model: nn.Module,
    network: Network,
    part: Part,
    epochs: int,
    rate: float,
    seed: int,
    loss: Loss = plain_loss,
) -> None:
    """One cycle of AdamW, in place.

    Args:
        model: What is trained.
        network: How: batches and what is done to them.
        part: On what.
        epochs: Passes over it.
        rate: The highest of the cycle.
        seed: Of the order.
        loss: What is made small.
    """
    inputs, labels = part
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
    steps = epochs * (len(labels) // network.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(labels), generator=generator).split(network.batch):
            if len(batch) < network.batch:
                continue
            value = loss(model, network.change(inputs[batch], generator), labels[batch])
            optimizer.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    model.eval()
