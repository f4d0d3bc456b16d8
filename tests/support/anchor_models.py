"""Small models whose wiring a test of the anchor rules shows, and what is asked about them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passportize.anchors.search import AnchorSearch, find_anchors
from passportize.signature.rows import anchor_rows

BATCH_NORMS = nn.modules.batchnorm._BatchNorm


def norm_widths(model: nn.Module) -> dict[str, tuple[int, ...]]:
    widths: dict[str, tuple[int, ...]] = {}
    for name, module in model.named_modules():
        if isinstance(module, BATCH_NORMS):
            widths[name] = (module.num_features,)
        elif isinstance(module, nn.GroupNorm):
            widths[name] = (module.num_channels,)
        elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
            widths[name] = tuple(module.normalized_shape)
    return widths


class Built(nn.Module):
    """Named parts and a forward, so that a test shows the wiring in one place."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.run = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def search(model: nn.Module, *shape: int, **options: Any) -> AnchorSearch:
    return find_anchors(
        model, norm_widths(model), torch.empty(shape, device="meta") if shape else None, **options
    )


def brief(found: AnchorSearch, name: str = "norm") -> tuple[Any, ...]:
    """Rule and ``(weight, channels, start, repeats)`` of each part."""
    anchor = found.anchors[name]
    parts = [(p.weight, p.channels, p.start, p.repeats) for p in anchor.parts]
    return anchor.rule, *parts


def conv(i: int, o: int, k: int = 1, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, padding=k // 2, **options)


Case = tuple[str, Callable[[], nn.Module], tuple[int, ...], tuple[Any, ...]]
"""What is tried, the model, the shape of its input, and rule and parts of the anchor of `norm`."""


class Attention(nn.Module):
    """Fused qkv with norms on q and k, as timm writes it."""

    def __init__(self, dim: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = nn.LayerNorm(dim // heads)
        self.k_norm = nn.LayerNorm(dim // heads)
        self.norm = nn.LayerNorm(dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        x = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.proj(self.norm(x.transpose(1, 2).reshape(b, n, c)))


class Conditional(nn.Module):
    """Asks for the value of an activation between the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 6)
        self.last = nn.Linear(6, 4)
        self.norm = nn.LayerNorm(4)
        self.tail = nn.BatchNorm1d(12)
        self.spare = nn.BatchNorm1d(12)
        self.register_buffer("count", torch.zeros(()))
        self.kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = F.elu(self.first(x))
        self.count += 1
        if float(x.sum()) > 1e9:
            raise ValueError("too large")
        self.kept = x = x + torch.rand(1)
        y = self.norm(self.last(x) + x[:, :4])
        return self.tail(torch.cat([y, self.last(x), F.relu(self.last(x * 2))], 1))


def assert_bound(
    title: str,
    make: Callable[[], nn.Module],
    shape: tuple[int, ...],
    expected: tuple[Any, ...],
) -> None:
    model = make()
    found = search(model, *shape)
    assert found.method == "fx-meta"
    assert brief(found) == expected
    assert found.executed == set(norm_widths(model))
    assert {p.weight for p in found.anchors["norm"].parts} <= set(dict(model.named_parameters()))
    check_rows(model, torch.randn(shape), found)


def check_rows(model: nn.Module, x: Tensor, found: AnchorSearch, names: Sequence[str] = ()) -> None:
    """The row of a channel is what that channel of the norm's input depends on, and no other."""
    parameters, modules = dict(model.named_parameters()), dict(model.named_modules())
    inputs: dict[str, Tensor] = {}
    model = model.eval()
    for name in norm_widths(model):
        modules[name].register_forward_pre_hook(
            lambda _, args, name=name: inputs.update({name: args[0]})
        )
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model(x)
    for name in names or norm_widths(model):
        anchor = found.anchors.get(name)
        if anchor is None or anchor.parts[0].axis == "input":
            continue
        source, offset = inputs[name], 0
        channels = anchor.channels
        dims = (1, -1) if source.dim() == 4 else (-1, 1)
        dim = next(d for d in dims if source.shape[d] == channels)
        live = False
        for part in anchor.parts:
            weight = parameters[part.weight]
            for channel in {0, part.channels - 1}:
                values = source.select(dim, offset + channel)
                scale = torch.randn_like(values)
                (grad,) = torch.autograd.grad((values * scale).sum(), weight, retain_graph=True)
                size = anchor_rows(grad, part).norm(dim=1)
                live = live or bool(size[channel] > 0)
                if not {"norm", "mul"} & set(anchor.crossed) and len(anchor.parts) == 1:
                    size[channel] = 0
                    assert size.max() < 1e-6 * (1 + grad.abs().max())
            offset += part.channels
        assert live, name
