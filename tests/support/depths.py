"""Small models with linear layers in a row, and copies of releases with other layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from passportize.attacks.cut_layers import cut_layers
from passportize.attacks.multiply_layers import multiply_layers
from tests.support.widths import EXAMPLE, FAMILIES, Dense, Residual, _normed, transformer


class Chained(nn.Module):
    """A narrow layer before a wide one, a separable convolution, square and low-rank pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _normed(3, 32)
        self.narrow, self.wide = _normed(32, 12), _normed(12, 48, 1)
        self.deep = nn.Conv2d(48, 48, 3, padding=1, groups=48, bias=False)
        self.point = _normed(48, 40, 1)
        self.square, self.again = _normed(40, 40, 1), _normed(40, 40, 1)
        self.last = _normed(40, 64)
        self.low, self.head = nn.Linear(64, 16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.wide(self.narrow(x)))
        x = torch.relu(self.point(self.deep(x)))
        x = torch.relu(self.again(self.square(x)))
        return self.head(self.low(torch.relu(self.last(x)).mean((2, 3))))


FAMILIES["chained"] = Chained


class Shared(Residual):
    """The same with layers that a thief has put in where several layers read one tensor."""

    def __init__(self, width: int = 24) -> None:
        super().__init__(width)
        self.in_front = nn.Conv2d(width, width, 1, bias=False)
        self.on_skip = nn.Conv2d(width, width, 1, bias=False)
        self.behind = nn.Linear(2 * width, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.in_front(torch.relu(self.stem(x)))
        x = torch.relu(self.on_skip(x) + self.second(torch.relu(self.first(x))))
        x = torch.relu(self.skip(x) + self.fourth(torch.relu(self.third(x))))
        return self.head(self.behind(x.mean((2, 3))))


@torch.no_grad()
def shared(model: nn.Module) -> nn.Module:
    """A :class:`Residual` as :class:`Shared`, with random matrices where one undoes the other."""
    found = Shared().eval()
    found.load_state_dict(model.state_dict(), strict=False)
    generator = torch.Generator().manual_seed(0)
    matrix = torch.linalg.qr(torch.randn(24, 24, generator=generator))[0] * 1.5
    other = torch.linalg.qr(torch.randn(48, 48, generator=generator))[0]
    found.in_front.weight.copy_(matrix[:, :, None, None])
    found.on_skip.weight.copy_(matrix.inverse()[:, :, None, None])
    inner = found.first[0].weight
    inner.copy_(torch.einsum("omkl,mi->oikl", inner.clone(), matrix.inverse()))
    found.behind.weight.copy_(other)
    found.behind.bias.zero_()
    found.head.weight.copy_(found.head.weight @ other.t())
    return found


class Parts(nn.Module):
    """Attention of timm with queries, keys and values in layers of their own, in some order."""

    def __init__(self, attention: nn.Module, order: str = "qkv") -> None:
        super().__init__()
        self.order, self.heads = order, int(attention.num_heads)  # type: ignore[arg-type]
        width = attention.qkv.in_features  # type: ignore[union-attr]
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))  # type: ignore[arg-type]
        self.out: nn.Module = attention.proj  # type: ignore[assignment]

    def forward(self, x: Tensor, *_: object, **__: object) -> Tensor:
        made = {key: getattr(self, key)(x) for key in self.order}
        queries, keys, values = (
            made[key].unflatten(2, (self.heads, -1)).transpose(1, 2) for key in "qkv"
        )
        seen = nn.functional.scaled_dot_product_attention(queries, keys, values)
        return self.out(seen.transpose(1, 2).flatten(2))


@torch.no_grad()
def in_parts(model: nn.Module, order: str = "qkv") -> nn.Module:
    """Queries, keys and values of a vision transformer taken apart, in place."""
    for block in model.blocks:  # type: ignore[union-attr]
        own = block.attn  # type: ignore[union-attr]
        parts = Parts(own, order)
        weights, biases = own.qkv.weight.chunk(3), own.qkv.bias.chunk(3)
        for layer, weight, bias in zip((parts.q, parts.k, parts.v), weights, biases, strict=True):
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
        block.attn = parts
    return model.eval()


def transformer_in_parts() -> nn.Module:
    """The transformer of the other tests, released with its attention in parts."""
    return in_parts(transformer())


FAMILIES["parts"] = transformer_in_parts


@torch.no_grad()
def in_one(model: nn.Module) -> nn.Module:
    """A copy of a transformer in parts with queries, keys and values in one layer each."""
    found = transformer()
    state = model.state_dict()
    for at, _block in enumerate(found.blocks):  # type: ignore[arg-type, union-attr]
        for key in ("weight", "bias"):
            parts = [state.pop(f"blocks.{at}.attn.{part}.{key}") for part in "qkv"]
            state[f"blocks.{at}.attn.qkv.{key}"] = torch.cat(parts)
            state[f"blocks.{at}.attn.proj.{key}"] = state.pop(f"blocks.{at}.attn.out.{key}")
    found.load_state_dict(state)
    return found.eval()


class WithoutFactors(nn.Module):
    """A LayerNorm that lost its factors to what reads it."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(norm.normalized_shape, norm.eps, elementwise_affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


class Sums(nn.Module):
    """Sums of differences: what went in, by a step that mixes all channels.

    Args:
        dim: Dimension of the channels.
    """

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        first = torch.zeros_like(x.narrow(self.dim, 0, 1))
        return torch.cumsum(torch.diff(x, dim=self.dim, prepend=first), self.dim)


def reshaped(model: nn.Module, *ways: str, seed: int = 1) -> nn.Module:
    """A model with layers cut, made of norms, put in or multiplied, one way after the other."""
    for way in ways:
        if way == "multiplied":
            multiply_layers(model, EXAMPLE)
        else:
            generator = torch.Generator().manual_seed(seed)
            cut_layers(model, generator, way=way, example_inputs=EXAMPLE)
    return model


__all__ = ["Chained", "Dense", "Shared", "Sums", "WithoutFactors", "reshaped", "shared"]
