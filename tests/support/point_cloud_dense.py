"""Point-cloud classifiers on dense ``[B, 3, N]`` tensors, in the idioms of the field, small."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TransformNet(nn.Module):
    """Predicts a ``k x k`` matrix; its identity is a numpy constant moved by ``is_cuda``."""

    def __init__(self, channels: int, k: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(channels, 16, 1)
        self.conv2 = nn.Conv1d(16, 32, 1)
        self.conv3 = nn.Conv1d(32, 64, 1)
        self.fc1 = nn.Linear(64, 32)
        self.fc2 = nn.Linear(32, 32)
        self.fc3 = nn.Linear(32, k * k)
        self.relu = nn.ReLU()
        self.bn1 = nn.BatchNorm1d(16)
        self.bn2 = nn.BatchNorm1d(32)
        self.bn3 = nn.BatchNorm1d(64)
        self.bn4 = nn.BatchNorm1d(32)
        self.bn5 = nn.BatchNorm1d(32)
        self.k = k

    def forward(self, x: Tensor) -> Tensor:
        batch = x.size()[0]
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(self.bn3(self.conv3(x)))
        x = torch.max(x, 2, keepdim=True)[0].view(-1, 64)
        x = self.relu(self.bn4(self.fc1(x)))
        x = self.relu(self.bn5(self.fc2(x)))
        x = self.fc3(x)
        eye = torch.from_numpy(np.eye(self.k, dtype=np.float32).ravel()).repeat(batch, 1)
        if x.is_cuda:
            eye = eye.cuda()
        return (x + eye).view(-1, self.k, self.k)


class PointNetEncoder(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stn = TransformNet(channels, 3)
        self.conv1 = nn.Conv1d(channels, 16, 1)
        self.conv2 = nn.Conv1d(16, 32, 1)
        self.conv3 = nn.Conv1d(32, 64, 1)
        self.bn1 = nn.BatchNorm1d(16)
        self.bn2 = nn.BatchNorm1d(32)
        self.bn3 = nn.BatchNorm1d(64)
        self.fstn = TransformNet(16, 16)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        _, depth, _ = x.size()
        transform = self.stn(x)
        x = x.transpose(2, 1)
        features = None
        if depth > 3:
            features = x[:, :, 3:]
            x = x[:, :, :3]
        x = torch.bmm(x, transform)
        if features is not None:
            x = torch.cat([x, features], dim=2)
        x = x.transpose(2, 1)
        x = F.relu(self.bn1(self.conv1(x)))
        feature_transform = self.fstn(x)
        x = torch.bmm(x.transpose(2, 1), feature_transform).transpose(2, 1)
        x = F.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        return torch.max(x, 2)[0], feature_transform


class PointNet(nn.Module):
    """PointNet with both transform nets; returns log-probabilities and the feature transform."""

    def __init__(self, classes: int, channels: int = 3) -> None:
        super().__init__()
        self.feat = PointNetEncoder(channels)
        self.fc1 = nn.Linear(64, 64)
        self.fc2 = nn.Linear(64, 32)
        self.fc3 = nn.Linear(32, classes)
        self.dropout = nn.Dropout(p=0.4)
        self.bn1 = nn.BatchNorm1d(64)
        self.bn2 = nn.BatchNorm1d(32)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x, feature_transform = self.feat(x)
        x = F.relu(self.bn1(self.fc1(x)))
        x = F.relu(self.bn2(self.dropout(self.fc2(x))))
        return F.log_softmax(self.fc3(x), dim=1), feature_transform


def neighbours(x: Tensor, k: int) -> Tensor:
    """Indices ``[B, N, k]`` of the nearest points of ``x [B, C, N]``."""
    inner = -2 * torch.matmul(x.transpose(2, 1), x)
    square = torch.sum(x**2, dim=1, keepdim=True)
    return (-square - inner - square.transpose(2, 1)).topk(k=k, dim=-1)[1]


def edge_features(x: Tensor, k: int) -> Tensor:
    """``[B, C, N] -> [B, 2C, N, k]``: neighbour minus centre, and centre."""
    batch, channels, points = x.size()
    index = neighbours(x, k) + torch.arange(batch, device=x.device).view(-1, 1, 1) * points
    flat = x.transpose(2, 1).contiguous().view(batch * points, channels)
    near = flat[index.view(-1)].view(batch, points, k, channels)
    centre = x.transpose(2, 1).unsqueeze(2).expand(-1, -1, k, -1)
    return torch.cat((near - centre, centre), dim=3).permute(0, 3, 1, 2).contiguous()


class DGCNN(nn.Module):
    """Each norm is registered twice: as an attribute and inside a Sequential."""

    def __init__(self, classes: int, k: int = 6) -> None:
        super().__init__()
        self.k = k
        self.bn1 = nn.BatchNorm2d(16)
        self.bn2 = nn.BatchNorm2d(16)
        self.bn3 = nn.BatchNorm2d(32)
        self.bn4 = nn.BatchNorm1d(64)
        self.conv1 = nn.Sequential(nn.Conv2d(6, 16, 1, bias=False), self.bn1, nn.LeakyReLU(0.2))
        self.conv2 = nn.Sequential(nn.Conv2d(32, 16, 1, bias=False), self.bn2, nn.LeakyReLU(0.2))
        self.conv3 = nn.Sequential(nn.Conv2d(32, 32, 1, bias=False), self.bn3, nn.LeakyReLU(0.2))
        self.conv4 = nn.Sequential(nn.Conv1d(64, 64, 1, bias=False), self.bn4, nn.LeakyReLU(0.2))
        self.linear1 = nn.Linear(128, 176, bias=False)
        self.bn6 = nn.BatchNorm1d(176)
        self.dp1 = nn.Dropout(p=0.5)
        self.linear2 = nn.Linear(176, 32)
        self.bn7 = nn.BatchNorm1d(32)
        self.dp2 = nn.Dropout(p=0.5)
        self.linear3 = nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.size(0)
        x1 = self.conv1(edge_features(x, self.k)).max(dim=-1, keepdim=False)[0]
        x2 = self.conv2(edge_features(x1, self.k)).max(dim=-1, keepdim=False)[0]
        x3 = self.conv3(edge_features(x2, self.k)).max(dim=-1, keepdim=False)[0]
        x = self.conv4(torch.cat((x1, x2, x3), dim=1))
        x = torch.cat(
            (
                F.adaptive_max_pool1d(x, 1).view(batch, -1),
                F.adaptive_avg_pool1d(x, 1).view(batch, -1),
            ),
            1,
        )
        x = self.dp1(F.leaky_relu(self.bn6(self.linear1(x)), negative_slope=0.2))
        x = self.dp2(F.leaky_relu(self.bn7(self.linear2(x)), negative_slope=0.2))
        return self.linear3(x)


class PlainListNet(nn.Module):
    """The forward runs over a plain Python list that the module tree does not know."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(3, 16, 1)
        self.bn1 = nn.BatchNorm1d(16)
        self.conv2 = nn.Conv1d(16, 64, 1)
        self.bn2 = nn.BatchNorm1d(64)
        self.relu = nn.ReLU()
        self.layers = [self.conv1, self.bn1, self.relu, self.conv2, self.bn2, self.relu]
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != 3:
            raise RuntimeError("expected points as [B, 3, N]")
        for layer in self.layers:
            x = layer(x)
        return self.head(x.max(dim=2)[0])


class CachingNet(nn.Module):
    """Keeps a non-leaf tensor after each forward, so that ``copy.deepcopy`` raises."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 32, 1)
        self.norm = nn.BatchNorm1d(32)
        self.head_conv = nn.Conv1d(32, 64, 1, bias=False)
        self.head_norm = nn.BatchNorm1d(64)
        self.head = nn.Linear(64, classes)
        self.last_transform: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        self.last_transform = x.mean(dim=2)
        x = F.relu(self.head_norm(self.head_conv(x)))
        return self.head(x.amax(dim=2))


class IdleNormsNet(nn.Module):
    """Carries a reconstruction decoder whose norms never run in classification."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 48, 1)
        self.norm = nn.BatchNorm1d(48)
        self.conv2 = nn.Conv1d(48, 48, 1)
        self.norm2 = nn.BatchNorm1d(48)
        self.decoder = nn.Sequential(
            nn.Linear(48, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 96)
        )
        self.mask_norm = nn.LayerNorm(48)
        self.head = nn.Linear(48, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu()
        x = self.norm2(self.conv2(x)).relu()
        return self.head(x.amax(dim=2))

    def reconstruct(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu()
        return self.decoder(self.mask_norm(x.amax(dim=2)))
