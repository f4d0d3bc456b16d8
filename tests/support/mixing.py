"""Small models whose layers mix positions, with hidden units of their own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from timm.layers import GluMlp
from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock
from torch import Tensor, nn


def _with_head(model: MlpMixer) -> nn.Module:
    # timm starts with a head of zeros, behind which every model computes the same.
    nn.init.normal_(model.head.weight, std=0.1)
    return model


def mixer() -> nn.Module:
    """Two blocks of an MLP-Mixer over 64 patches."""
    return _with_head(MlpMixer(10, img_size=16, patch_size=2, num_blocks=2, embed_dim=80))


def gated_mixer() -> nn.Module:
    """The same with gates: every hidden unit of the tokens is the product of two."""
    return _with_head(
        MlpMixer(
            10, img_size=16, patch_size=2, num_blocks=2, embed_dim=80, mlp_ratio=(2.0, 4.0),
            mlp_layer=GluMlp, act_layer=nn.SiLU,
        )
    )  # fmt: skip


def affine() -> nn.Module:
    """A ResMLP: positions are mixed by one layer, and norms are factors and shifts alone."""
    model = MlpMixer(
        10, img_size=16, patch_size=2, num_blocks=2, embed_dim=80, mlp_ratio=4,
        block_layer=ResBlock, norm_layer=Affine,
    )  # fmt: skip
    for module in model.modules():
        if isinstance(module, Affine):
            nn.init.uniform_(module.alpha, 0.5, 1.5)
            nn.init.normal_(module.beta, std=0.1)
    return _with_head(model)


class ByConvolution(nn.Module):
    """Positions are mixed by convolutions of single entries, with a norm over the hidden units."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 80, 2, stride=2)
        self.norm = nn.LayerNorm(80)
        self.inward, self.hidden = nn.Conv1d(64, 48, 1), nn.BatchNorm1d(48)
        self.outward = nn.Conv1d(48, 64, 1)
        self.last, self.head = nn.LayerNorm(80), nn.Linear(80, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        hidden = torch.relu(self.hidden(self.inward(self.norm(x))))
        return self.head(self.last(x + self.outward(hidden)).mean(1))


class NormedPositions(nn.Module):
    """A norm over positions, as it is for every channel, and one over hidden units of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 80, 2, stride=2), nn.LayerNorm(64)
        self.inward, self.hidden, self.outward = (
            nn.Linear(64, 48),
            nn.LayerNorm(48),
            nn.Linear(48, 64),
        )
        self.head = nn.Linear(80, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2)
        x = x + self.outward(torch.relu(self.hidden(self.inward(self.norm(x)))))
        return self.head(torch.relu(x).mean(2))


class Twice(nn.Module):
    """One layer over positions and, once more, over channels: nothing of it can move."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 2, stride=2)
        self.first, self.second = nn.Linear(64, 48), nn.Linear(48, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2)
        x = x + self.second(torch.relu(self.first(x)))
        x = x.transpose(1, 2)
        x = x + self.second(torch.relu(self.first(x)))
        return self.head(x.mean(1))


MIXING: dict[str, Callable[[], nn.Module]] = {
    "mixer": mixer,
    "gated mixer": gated_mixer,
    "affine": affine,
    "by convolution": ByConvolution,
    "normed positions": NormedPositions,
}
