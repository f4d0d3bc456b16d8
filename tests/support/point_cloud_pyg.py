"""Classifiers in PyTorch Geometric on packed batches ``(pos, edge_index, batch)``, small."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch_geometric.nn import (
    GCN,
    GIN,
    MLP,
    EdgeConv,
    Linear,
    PointNetConv,
    PointTransformerConv,
    global_max_pool,
    global_mean_pool,
)


def knn_edges(pos: Tensor, batch: Tensor, k: int) -> Tensor:
    """Edges ``[2, E]`` from the ``k`` nearest other points of the same cloud."""
    distance = torch.cdist(pos, pos)
    distance = distance.masked_fill(batch.unsqueeze(0) != batch.unsqueeze(1), torch.inf)
    distance.fill_diagonal_(torch.inf)
    near = distance.topk(k, dim=1, largest=False)[1]
    centre = torch.arange(len(pos)).unsqueeze(1).expand_as(near)
    return torch.stack([near.flatten(), centre.flatten()])


class PointNetConvNet(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = PointNetConv(MLP([3 + 3, 16, 32]), MLP([32, 64, 32]))
        self.conv2 = PointNetConv(MLP([32 + 3, 64, 64], norm="batch_norm"), None)
        self.head = MLP([64, 96, 32, classes], dropout=0.5)

    def forward(self, pos: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        x = self.conv1(pos, pos, edge_index).relu()
        x = self.conv2(x, pos, edge_index).relu()
        return self.head(global_max_pool(x, batch))


class EdgeConvNet(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = EdgeConv(MLP([2 * 3, 32, 32]), aggr="max")
        self.conv2 = EdgeConv(MLP([2 * 32, 64, 64]), aggr="max")
        self.lin1 = Linear(96, 128)
        self.head = MLP([128, 128, 64, classes], dropout=0.5)

    def forward(self, pos: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        x1 = self.conv1(pos, edge_index)
        x2 = self.conv2(x1, edge_index)
        return self.head(global_max_pool(self.lin1(torch.cat([x1, x2], dim=1)), batch))


class AttentionBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.lin_in = Linear(channels, channels)
        self.lin_out = Linear(channels, channels)
        self.conv = PointTransformerConv(
            channels,
            channels,
            pos_nn=MLP([3, 16, channels], norm=None, plain_last=False),
            attn_nn=MLP([channels, 32, channels], plain_last=True),
        )

    def forward(self, x: Tensor, pos: Tensor, edge_index: Tensor) -> Tensor:
        x = self.lin_in(x).relu()
        return self.lin_out(self.conv(x, pos, edge_index)).relu()


class PointTransformerNet(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.mlp_input = MLP([3, 32], plain_last=False)
        self.blocks = nn.ModuleList([AttentionBlock(32), AttentionBlock(32)])
        self.mlp_middle = MLP([32, 128], plain_last=False)
        self.head = MLP([128, 64, classes])

    def forward(self, pos: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        x = self.mlp_input(pos)
        for block in self.blocks:
            x = block(x, pos, edge_index)
        return self.head(global_mean_pool(self.mlp_middle(x), batch))


class GraphNet(nn.Module):
    """A library GNN inside a classifier; its jumping-knowledge head reads all layers."""

    def __init__(self, kind: str, classes: int, norm: str = "batch_norm") -> None:
        super().__init__()
        model = {"gin": GIN, "gcn": GCN}[kind]
        self.gnn = model(3, 64 if kind == "gin" else 128, num_layers=3, norm=norm, jk="cat")
        self.head = Linear(-1 if kind == "gcn" else self.gnn.out_channels, classes)

    def forward(self, pos: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        x = self.gnn(pos, edge_index, batch=batch, batch_size=int(batch.max()) + 1)
        return self.head(global_mean_pool(x, batch))


class ActFirstNet(nn.Module):
    """``act_first``: the norm follows the activation, not the linear layer."""

    def __init__(self, classes: int, norm: str | None = "batch_norm") -> None:
        super().__init__()
        self.local = MLP([3, 64, 64, 128], act_first=True, norm=norm, plain_last=False)
        self.head = MLP([128, 64, classes], act_first=True, act="elu")

    def forward(self, pos: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        return self.head(global_max_pool(self.local(pos, batch), batch))
