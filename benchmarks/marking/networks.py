"""Networks of a few million parameters, trained on Fashion-MNIST and kept for measurements.

ResNet-18 of half width without its pooling, a small ConvNeXt and a ViT of depth 4 with 16 patches:
sizes that one core trains in minutes. 20,000 of the 60,000 training images, AdamW with one cycle;
accuracies are those of the 10,000 test images. Trained weights are kept in a folder, so that a
measurement that was stopped goes on.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models.convnext import ConvNeXt
from torch import Tensor, nn

from passportize.data.fashion_mnist import load_fashion_mnist

__all__ = ["EPOCHS", "IMAGES", "NETWORKS", "accuracy", "data", "train", "trained"]

EPOCHS, BATCH, IMAGES = 3, 100, 20_000

_logger = logging.getLogger(__name__)


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


NETWORKS: dict[str, tuple[Callable[[], nn.Module], float]] = {
    "resnet18, half width": (_resnet, 3e-3),
    "convnext": (_convnext, 3e-3),
    "vit, depth 4": (_vit, 2e-3),
}
"""How each is made, and its highest rate."""


def data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels, test images and labels; standardised."""
    train, labels = load_fashion_mnist("train")
    test, test_labels = load_fashion_mnist("test")
    return (train - 0.286) / 0.353, labels, (test - 0.286) / 0.353, test_labels


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Top-1, in percent."""
    model.eval()
    hits = sum(
        int((model(x).argmax(1) == y).sum())
        for x, y in zip(images.split(250), labels.split(250), strict=True)
    )
    return 100.0 * hits / len(labels)


def trained(name: str, seed: int, folder: Path) -> tuple[nn.Module, float]:
    """A trained network and the seconds of processor time that its training took."""
    make, rate = NETWORKS[name]
    kept = folder / f"{name.replace(', ', '_').replace(' ', '_')}_{seed}.safetensors"
    note = kept.with_suffix(".json")
    torch.manual_seed(seed)
    model = make()
    if kept.exists():
        model.load_state_dict(load_file(kept))
        return model.eval(), float(json.loads(note.read_text())["seconds"])
    images, labels, test, test_labels = data()
    start = time.process_time()
    train(model, images[:IMAGES], labels[:IMAGES], EPOCHS, rate, seed)
    seconds = time.process_time() - start
    _logger.info("%s, seed %d: %.2f %%", name, seed, accuracy(model, test, test_labels))
    folder.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps({"seconds": seconds}))
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, kept)
    return model.eval(), seconds


def train(
    model: nn.Module, images: Tensor, labels: Tensor, epochs: int, rate: float, seed: int
) -> None:
    """One cycle of AdamW."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
    steps = epochs * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(images), generator=generator).split(BATCH):
            if len(batch) < BATCH:
                continue
            loss = nn.functional.cross_entropy(
                model(images[batch]), labels[batch], label_smoothing=0.05
            )
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    model.eval()
