"""Point-cloud classifiers with attention: PCT with tied weights and a LayerNorm transformer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.point_cloud_hierarchical import group


class OffsetAttention(nn.Module):
    """Query and key projections share one weight, and each has a norm of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.q_conv = nn.Conv1d(channels, channels // 4, 1, bias=False)
        self.k_conv = nn.Conv1d(channels, channels // 4, 1, bias=False)
        self.q_conv.weight = self.k_conv.weight
        self.q_norm = nn.BatchNorm1d(channels // 4)
        self.k_norm = nn.BatchNorm1d(channels // 4)
        self.v_conv = nn.Conv1d(channels, channels, 1)
        self.trans_conv = nn.Conv1d(channels, channels, 1)
        self.after_norm = nn.BatchNorm1d(channels)
        self.act = nn.ReLU()
        self.softmax = nn.Softmax(dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        query = self.q_norm(self.q_conv(x)).permute(0, 2, 1)
        attention = self.softmax(torch.bmm(query, self.k_norm(self.k_conv(x))))
        attention = attention / (1e-9 + attention.sum(dim=1, keepdim=True))
        mixed = torch.bmm(self.v_conv(x), attention)
        return x + self.act(self.after_norm(self.trans_conv(x - mixed)))


class PCT(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(3, 32, 1, bias=False)
        self.bn1 = nn.BatchNorm1d(32)
        self.conv2 = nn.Conv1d(32, 32, 1, bias=False)
        self.bn2 = nn.BatchNorm1d(32)
        self.sa1 = OffsetAttention(32)
        self.sa2 = OffsetAttention(32)
        self.conv_fuse = nn.Sequential(
            nn.Conv1d(96, 96, 1, bias=False), nn.BatchNorm1d(96), nn.LeakyReLU(0.2)
        )
        self.linear1 = nn.Linear(96, 96, bias=False)
        self.bn6 = nn.BatchNorm1d(96)
        self.dp1 = nn.Dropout(0.5)
        self.linear2 = nn.Linear(96, classes)

    def forward(self, x: Tensor) -> Tensor:
        batch_size, _, _ = list(x.size())
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x1 = self.sa1(x)
        x2 = self.sa2(x1)
        x = self.conv_fuse(torch.cat((x, x1, x2), dim=1))
        x = F.adaptive_max_pool1d(x, 1).view(batch_size, -1)
        x = self.dp1(F.leaky_relu(self.bn6(self.linear1(x)), negative_slope=0.2))
        return self.linear2(x)


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        x = x + self.proj(mixed.reshape(batch, tokens, width))
        return x + self.mlp(self.norm2(x))


class PointTransformer(nn.Module):
    """Patches of points become tokens; LayerNorms sit after residual adds."""

    def __init__(self, classes: int, width: int = 56, depth: int = 2) -> None:
        super().__init__()
        self.embed = nn.Sequential(
            nn.Conv1d(3, 32, 1), nn.BatchNorm1d(32), nn.ReLU(), nn.Conv1d(32, width, 1)
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Sequential(nn.Linear(3, 32), nn.GELU(), nn.Linear(32, width))
        self.blocks = nn.ModuleList([Block(width, 4) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        centres, local = group(x.transpose(1, 2), None, 12, 8)
        batch, count, k, _ = local.shape
        tokens = self.embed(local.reshape(batch * count, k, 3).transpose(1, 2)).amax(dim=2)
        tokens = tokens.view(batch, count, -1)
        x = torch.cat([self.cls_token.expand(batch, -1, -1), tokens + self.pos_embed(centres)], 1)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.head(torch.cat([x[:, 0], x[:, 1:].amax(dim=1)], dim=-1))
