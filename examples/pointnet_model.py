"""PointNet for classification, sized for a CPU (C. R. Qi et al., PointNet, CVPR 2017)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["PointNet"]


class TransformNet(nn.Module):
    """Predicts a ``k x k`` matrix for each cloud, the identity at first."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k
        self.conv1 = nn.Conv1d(k, 32, 1)
        self.bn1 = nn.BatchNorm1d(32)
        self.conv2 = nn.Conv1d(32, 64, 1)
        self.bn2 = nn.BatchNorm1d(64)
        self.fc1 = nn.Linear(64, 64)
        self.bn3 = nn.BatchNorm1d(64)
        self.fc2 = nn.Linear(64, k * k)
        nn.init.zeros_(self.fc2.weight)
        nn.init.zeros_(self.fc2.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, k, N] -> [B, k, k]``."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(self.bn3(self.fc1(x.amax(dim=2))))
        eye = torch.eye(self.k, dtype=x.dtype, device=x.device)
        return self.fc2(x).view(-1, self.k, self.k) + eye


class PointNet(nn.Module):
    """Input and feature transform, a shared MLP on points, max pooling, a classifier."""

    def __init__(self, classes: int, width: int = 256) -> None:
        super().__init__()
        self.input_transform = TransformNet(3)
        self.conv1 = nn.Conv1d(3, 64, 1)
        self.bn1 = nn.BatchNorm1d(64)
        self.feature_transform = TransformNet(64)
        self.conv2 = nn.Conv1d(64, 128, 1)
        self.bn2 = nn.BatchNorm1d(128)
        self.conv3 = nn.Conv1d(128, width, 1)
        self.bn3 = nn.BatchNorm1d(width)
        self.fc1 = nn.Linear(width, 128)
        self.bn4 = nn.BatchNorm1d(128)
        self.dropout = nn.Dropout(0.3)
        self.fc2 = nn.Linear(128, 64)
        self.bn5 = nn.BatchNorm1d(64)
        self.fc3 = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Points ``[B, N, 3]`` to class scores ``[B, classes]``."""
        x = x.transpose(1, 2)
        x = torch.bmm(self.input_transform(x), x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = torch.bmm(self.feature_transform(x), x)
        x = F.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x)).amax(dim=2)
        x = F.relu(self.bn4(self.fc1(x)))
        x = F.relu(self.bn5(self.dropout(self.fc2(x))))
        return self.fc3(x)
