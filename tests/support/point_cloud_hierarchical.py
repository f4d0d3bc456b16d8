"""Point-cloud classifiers that sample and group points: PointNet++ and PointMLP."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def farthest_points(xyz: Tensor, count: int, random_start: bool = False) -> Tensor:
    """Farthest point sampling of ``xyz [B, N, 3]`` in a Python loop: indices ``[B, count]``."""
    batch, points, _ = xyz.shape
    chosen = torch.zeros(batch, count, dtype=torch.long, device=xyz.device)
    distance = torch.ones(batch, points, device=xyz.device) * 1e10
    if random_start:
        farthest = torch.randint(0, points, (batch,), dtype=torch.long, device=xyz.device)
    else:
        farthest = torch.zeros(batch, dtype=torch.long, device=xyz.device)
    rows = torch.arange(batch, dtype=torch.long, device=xyz.device)
    for i in range(count):
        chosen[:, i] = farthest
        centre = xyz[rows, farthest, :].view(batch, 1, 3)
        squared = torch.sum((xyz - centre) ** 2, -1)
        closer = squared < distance
        distance[closer] = squared[closer]
        farthest = torch.max(distance, -1)[1]
    return chosen


def gather(points: Tensor, index: Tensor) -> Tensor:
    """Rows of ``points [B, N, C]`` at ``index [B, ...]``: ``[B, ..., C]``."""
    shape = list(index.shape)
    shape[1:] = [1] * (len(shape) - 1)
    rows = torch.arange(len(points), device=points.device).view(shape).expand_as(index)
    return points[rows, index, :]


def group(
    xyz: Tensor, features: Tensor | None, count: int, k: int, random_start: bool = False
) -> tuple[Tensor, Tensor]:
    """Centres ``[B, S, 3]`` and their neighbourhoods ``[B, S, k, 3 + C]``."""
    centres = gather(xyz, farthest_points(xyz, count, random_start))
    index = torch.cdist(centres, xyz).topk(k, dim=-1, largest=False)[1]
    local = gather(xyz, index) - centres.unsqueeze(2)
    if features is not None:
        local = torch.cat([local, gather(features, index)], dim=-1)
    return centres, local


class SetAbstraction(nn.Module):
    """Convolutions and norms live in two parallel lists."""

    def __init__(
        self, count: int | None, k: int, channels: int, widths: list[int], random_start: bool
    ) -> None:
        super().__init__()
        self.count = count
        self.k = k
        self.random_start = random_start
        self.mlp_convs = nn.ModuleList()
        self.mlp_bns = nn.ModuleList()
        last = channels
        for width in widths:
            self.mlp_convs.append(nn.Conv2d(last, width, 1))
            self.mlp_bns.append(nn.BatchNorm2d(width))
            last = width

    def forward(self, xyz: Tensor, points: Tensor | None) -> tuple[Tensor, Tensor]:
        xyz = xyz.permute(0, 2, 1)
        if points is not None:
            points = points.permute(0, 2, 1)
        if self.count is None:
            centres = torch.zeros(len(xyz), 1, 3, device=xyz.device)
            local = xyz if points is None else torch.cat([xyz, points], dim=-1)
            local = local.unsqueeze(1)
        else:
            centres, local = group(xyz, points, self.count, self.k, self.random_start)
        local = local.permute(0, 3, 2, 1)
        for i, conv in enumerate(self.mlp_convs):
            local = F.relu(self.mlp_bns[i](conv(local)))
        return centres.permute(0, 2, 1), torch.max(local, 2)[0]


class PointNet2(nn.Module):
    """PointNet++ with single-scale grouping."""

    def __init__(self, classes: int, random_start: bool = False) -> None:
        super().__init__()
        self.sa1 = SetAbstraction(24, 8, 3, [16, 16, 32], random_start)
        self.sa2 = SetAbstraction(8, 8, 35, [32, 32, 64], random_start)
        self.sa3 = SetAbstraction(None, 0, 67, [64, 64, 96], random_start)
        self.fc1 = nn.Linear(96, 64)
        self.bn1 = nn.BatchNorm1d(64)
        self.drop1 = nn.Dropout(0.4)
        self.fc2 = nn.Linear(64, 32)
        self.bn2 = nn.BatchNorm1d(32)
        self.drop2 = nn.Dropout(0.4)
        self.fc3 = nn.Linear(32, classes)

    def forward(self, xyz: Tensor) -> tuple[Tensor, Tensor]:
        batch, _, _ = xyz.shape
        xyz1, points1 = self.sa1(xyz, None)
        xyz2, points2 = self.sa2(xyz1, points1)
        _, points3 = self.sa3(xyz2, points2)
        x = points3.view(batch, 96)
        x = self.drop1(F.relu(self.bn1(self.fc1(x))))
        x = self.drop2(F.relu(self.bn2(self.fc2(x))))
        return F.log_softmax(self.fc3(x), -1), points3


class ConvNormAct(nn.Module):
    def __init__(self, channels: int, width: int, act: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(channels, width, 1, bias=False), nn.BatchNorm1d(width), act
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class ResidualPointBlock(nn.Module):
    def __init__(self, width: int, act: nn.Module) -> None:
        super().__init__()
        self.act = act
        self.net1 = nn.Sequential(
            nn.Conv1d(width, width, 1, bias=False), nn.BatchNorm1d(width), act
        )
        self.net2 = nn.Sequential(nn.Conv1d(width, width, 1, bias=False), nn.BatchNorm1d(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.net2(self.net1(x)) + x)


class GeometricAffine(nn.Module):
    """Groups neighbours and scales them by learned factors of shape ``[1, 1, 1, C]``."""

    def __init__(self, channels: int, count: int, k: int) -> None:
        super().__init__()
        self.count = count
        self.k = k
        self.affine_alpha = nn.Parameter(torch.ones(1, 1, 1, channels))
        self.affine_beta = nn.Parameter(torch.zeros(1, 1, 1, channels))

    def forward(self, xyz: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        chosen = farthest_points(xyz, self.count)
        centres = gather(xyz, chosen)
        centre_features = gather(features, chosen)
        index = torch.cdist(centres, xyz).topk(self.k, dim=-1, largest=False)[1]
        local = gather(features, index) - centre_features.unsqueeze(2)
        spread = local.reshape(len(xyz), -1).std(dim=-1).view(-1, 1, 1, 1)
        local = self.affine_alpha * local / (spread + 1e-5) + self.affine_beta
        centre = centre_features.unsqueeze(2).expand_as(local)
        return centres, torch.cat([local, centre], dim=-1)


class PointMLP(nn.Module):
    """Residual MLPs after each grouping; one activation module is shared by all of them."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        act = nn.ReLU(inplace=True)
        self.act = act
        self.embedding = ConvNormAct(3, 16, act)
        self.groupers = nn.ModuleList([GeometricAffine(16, 24, 8), GeometricAffine(32, 8, 8)])
        self.transfers = nn.ModuleList([ConvNormAct(32, 32, act), ConvNormAct(64, 64, act)])
        self.pre_blocks = nn.ModuleList([ResidualPointBlock(32, act), ResidualPointBlock(64, act)])
        self.pos_blocks = nn.ModuleList([ResidualPointBlock(32, act), ResidualPointBlock(64, act)])
        self.classifier = nn.Sequential(
            nn.Linear(64, 48), nn.BatchNorm1d(48), act, nn.Dropout(0.5), nn.Linear(48, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        xyz = x.permute(0, 2, 1)
        x = self.embedding(x)
        for i in range(len(self.groupers)):
            xyz, local = self.groupers[i](xyz, x.permute(0, 2, 1))
            batch, count, k, channels = local.size()
            local = local.permute(0, 1, 3, 2).reshape(-1, channels, k)
            local = self.pre_blocks[i](self.transfers[i](local))
            pooled = F.adaptive_max_pool1d(local, 1).view(batch * count, -1)
            x = self.pos_blocks[i](pooled.reshape(batch, count, -1).permute(0, 2, 1))
        return self.classifier(F.adaptive_max_pool1d(x, 1).squeeze(dim=-1))
