"""Small models with steps that channels have to be followed through, one class for each kind."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, embedding, linear, max_pool2d, normalize, pad

INPUTS, WIDTH, HEADS, SIZE = 512, 96, 3, 16
INNER = HEADS * SIZE
WORDS = 600


def _heads(x: Tensor, count: int) -> Tensor:
    batch, tokens, _ = x.shape
    return x.reshape(batch, tokens, count, HEADS, -1).permute(2, 0, 3, 1, 4)


class Attention(nn.Module):
    """Attention over tokens; what a kind changes is a method of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * INNER), nn.Linear(INNER, WIDTH)

    def packed(self, x: Tensor) -> Tensor:
        return self.qkv(x)

    def seen(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return (queries @ keys.transpose(-2, -1) / 4).softmax(-1) @ values

    def forward(self, x: Tensor) -> Tensor:
        queries, keys, values = _heads(self.packed(x), 3).unbind(0)
        seen = self.seen(queries, keys, values).transpose(1, 2)
        return self.out(seen.flatten(2))


class BiasOfParts(Attention):
    """The bias is put together from those of queries and values; keys have none (BEiT, EVA-02)."""

    nothing: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * INNER, bias=False)
        self.q_bias, self.v_bias = (nn.Parameter(torch.randn(INNER)) for _ in range(2))
        self.register_buffer("nothing", torch.zeros(INNER), persistent=False)

    def packed(self, x: Tensor) -> Tensor:
        bias = torch.cat((self.q_bias, self.nothing, self.v_bias))
        return linear(x, weight=self.qkv.weight, bias=bias)


class Cosine(Attention):
    """Queries and keys of length one (Swin v2)."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(HEADS, 1, 1) + 4)

    def seen(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        scores = normalize(queries, dim=-1) @ normalize(keys, dim=-1).transpose(-2, -1)
        return (scores * self.scale).softmax(-1) @ values


class Rotary(Attention):
    """Queries and keys turned by their place, pair by pair (EVA-02, DINOv3)."""

    cosine: Tensor
    sine: Tensor

    def __init__(self, halves: bool = False) -> None:
        super().__init__()
        self.halves = halves
        angles = torch.arange(6.0)[:, None] * torch.logspace(0, -1, SIZE // 2)
        angles = torch.cat((angles, angles), 1) if halves else angles.repeat_interleave(2, 1)
        self.register_buffer("cosine", angles.cos(), persistent=False)
        self.register_buffer("sine", angles.sin(), persistent=False)

    def turned(self, x: Tensor) -> Tensor:
        if self.halves:
            first, second = x.chunk(2, -1)
            other = torch.cat((-second, first), -1)
        else:
            other = torch.stack((-x[..., 1::2], x[..., ::2]), -1).reshape(x.shape)
        return x * self.cosine + other * self.sine

    def seen(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return super().seen(self.turned(queries), self.turned(keys), values)


class Halves(Rotary):
    """The same where a pair lies half a head apart."""

    def __init__(self) -> None:
        super().__init__(halves=True)


class CrossCovariance(Attention):
    """Channels weigh channels (XCiT)."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(HEADS, 1, 1) + 4)

    def seen(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        queries, keys = (normalize(x.transpose(-2, -1), dim=-1) for x in (queries, keys))
        scores = (queries @ keys.transpose(-2, -1) * self.scale).softmax(-1)
        return (scores @ values.transpose(-2, -1)).transpose(-2, -1)


class LinearAttention(Attention):
    """Keys meet values first (EfficientViT)."""

    def seen(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        values = pad(values, (0, 1), value=1.0)
        summed = torch.relu(queries) @ (torch.relu(keys).transpose(-2, -1) @ values)
        return summed[..., :-1] / (summed[..., -1:] + 1e-3)


class TableOfHeads(Attention):
    """Scores have something added by distance, for each head (Swin)."""

    distance: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(11, HEADS))
        places = torch.arange(6)
        self.register_buffer("distance", places[:, None] - places[None] + 5, persistent=False)

    def seen(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        added = self.table[self.distance.view(-1)].view(6, 6, HEADS).permute(2, 0, 1)
        return ((queries @ keys.transpose(-2, -1)) / 4 + added).softmax(-1) @ values


class KeptTable(TableOfHeads):
    """The same, computed once for each device (LeViT)."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, Tensor] = {}

    def seen(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        if str(queries.device) not in self.kept:
            added = self.table[self.distance.view(-1)].view(6, 6, HEADS).permute(2, 0, 1)
            self.kept[str(queries.device)] = added
        scores = (queries @ keys.transpose(-2, -1)) / 4
        return (scores + self.kept[str(queries.device)]).softmax(-1) @ values


class ConvolvedValues(Attention):
    """Every channel of the values is seen by itself as well (LePE)."""

    def __init__(self) -> None:
        super().__init__()
        self.local = nn.Conv1d(INNER, INNER, 3, padding=1, groups=INNER)

    def seen(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        flat = values.transpose(1, 2).flatten(2).transpose(1, 2)
        near = self.local(flat).transpose(1, 2).unflatten(2, (HEADS, SIZE)).transpose(1, 2)
        return super().seen(queries, keys, values) + near


class NormedQueries(Attention):
    """A norm over the channels of every head, with the same factors for all (ViT-22B)."""

    norm: Callable[[int], nn.Module] = nn.LayerNorm

    def __init__(self) -> None:
        super().__init__()
        self.q_norm, self.k_norm = type(self).norm(SIZE), type(self).norm(SIZE)

    def seen(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return super().seen(self.q_norm(queries), self.k_norm(keys), values)


class NormedByLength(NormedQueries):
    """The same without means."""

    norm = nn.RMSNorm


class NormedAlike(NormedQueries):
    """One norm for queries and keys, so that both have the same channels."""

    def __init__(self) -> None:
        super().__init__()
        self.k_norm = self.q_norm


class FactorsOfChannels(Attention):
    """Queries times a parameter for each channel of a head, and one added to them."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.rand(SIZE) + 0.5)
        self.shift = nn.Parameter(torch.randn(SIZE) / 4)

    def seen(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return super().seen(torch.tanh(queries) * self.factor + self.shift, keys, values)


class Scales(nn.Module):
    """Heads as they are and heads summed over neighbours, side by side (EfficientViT)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * INNER), nn.Linear(2 * INNER, WIDTH)
        self.near = nn.Conv1d(3 * INNER, 3 * INNER, 3, padding=1, groups=3 * INNER)
        self.mixed = nn.Conv1d(3 * INNER, 3 * INNER, 1, groups=3 * HEADS)

    def forward(self, x: Tensor) -> Tensor:
        packed = self.qkv(x).transpose(1, 2)
        both = torch.cat([packed, self.mixed(self.near(packed))], 1)
        heads = both.reshape(len(x), 2 * HEADS, 3 * SIZE, -1).transpose(-1, -2)
        queries, keys, values = heads.chunk(3, -1)
        values = pad(values, (0, 1), value=1.0)
        summed = torch.relu(queries) @ (torch.relu(keys).transpose(-2, -1) @ values)
        seen = summed[..., :-1] / (summed[..., -1:] + 1e-3)
        return self.out(seen.transpose(1, 2).flatten(2))


class WeighedHeads(CrossCovariance):
    """Cross-covariance whose heads are multiplied with fixed numbers of their own."""

    numbers: Tensor

    def __init__(self) -> None:
        super().__init__()
        numbers = torch.linspace(0.5, 2, HEADS).view(-1, 1, 1)
        self.register_buffer("numbers", numbers, persistent=False)

    def seen(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return super().seen(queries, keys, values) * self.numbers


class OneForAllHeads(nn.Module):
    """Several heads of queries share keys and values (multi-query attention)."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.out = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)
        self.k, self.v = nn.Linear(WIDTH, SIZE), nn.Linear(WIDTH, SIZE)

    def forward(self, x: Tensor) -> Tensor:
        queries = self.q(x).unflatten(2, (HEADS, SIZE)).transpose(1, 2)
        keys, values = self.k(x)[:, None], self.v(x)[:, None]
        seen = nn.functional.scaled_dot_product_attention(queries, keys, values)
        return self.out(seen.transpose(1, 2).flatten(2))


class SharedKeys(nn.Module):
    """Every two heads of queries share keys and values (grouped-query attention)."""

    def __init__(self, rotary: bool = False) -> None:
        super().__init__()
        self.q, self.out = nn.Linear(WIDTH, 2 * INNER), nn.Linear(2 * INNER, WIDTH)
        self.k, self.v = nn.Linear(WIDTH, INNER), nn.Linear(WIDTH, INNER)
        self.turning = Rotary() if rotary else None

    def forward(self, x: Tensor) -> Tensor:
        queries, keys, values = (
            layer(x).unflatten(2, (-1, SIZE)).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        if self.turning is not None:
            queries, keys = self.turning.turned(queries), self.turning.turned(keys)
        seen = nn.functional.scaled_dot_product_attention(queries, keys, values, enable_gqa=True)
        return self.out(seen.transpose(1, 2).flatten(2))


class SharedKeysTurned(SharedKeys):
    """The same with queries and keys turned by their place (Llama)."""

    def __init__(self) -> None:
        super().__init__(rotary=True)


class SharedKeysNormed(SharedKeys):
    """The same with a norm over queries and over keys (Qwen3)."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(SIZE), nn.LayerNorm(SIZE)])

    def forward(self, x: Tensor) -> Tensor:
        queries, keys, values = (
            layer(x).unflatten(2, (-1, SIZE)).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        queries, keys = self.norms[0](queries), self.norms[1](keys)
        seen = nn.functional.scaled_dot_product_attention(queries, keys, values, enable_gqa=True)
        return self.out(seen.transpose(1, 2).flatten(2))


class NumberedHeads(SharedKeys):
    """The same where every head of queries has a number of its own behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = nn.Parameter(torch.linspace(0.5, 2, 2 * HEADS).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        queries, keys, values = (
            layer(x).unflatten(2, (-1, SIZE)).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        seen = nn.functional.scaled_dot_product_attention(queries, keys, values, enable_gqa=True)
        return self.out((seen * self.numbers).transpose(1, 2).flatten(2))


class RepeatedKeys(SharedKeys):
    """The same with keys and values that are laid out for every head."""

    def forward(self, x: Tensor) -> Tensor:
        queries, keys, values = (
            layer(x).unflatten(2, (-1, SIZE)).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        keys, values = (
            part[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1, 2) for part in (keys, values)
        )
        seen = (queries @ keys.transpose(-2, -1) / 4).softmax(-1) @ values
        return self.out(seen.transpose(1, 2).flatten(2))


class LengthNorm(nn.Module):
    """An RMSNorm of a class of its own (Llama, T5)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.rand(width) + 0.5), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        size = x.float().pow(2).mean(-1, keepdim=True)
        return self.weight * (x.float() * torch.rsqrt(size + self.variance_epsilon)).to(x.dtype)


class OnePlusNorm(LengthNorm):
    """The same with factors about one (Gemma)."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.weight = nn.Parameter(torch.rand(width) - 0.5)

    def forward(self, x: Tensor) -> Tensor:
        size = x.float().pow(2).mean(-1, keepdim=True)
        return (1.0 + self.weight) * (x.float() * torch.rsqrt(size + self.variance_epsilon))


class NormedByOwnLength(NormedQueries):
    """Queries and keys behind such a norm (Qwen3)."""

    norm = LengthNorm


class UnknownScores(Attention):
    """Weights of values that nothing is known of."""

    def seen(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return torch.cdist(queries, keys).softmax(-1) @ values


class Tokens(nn.Module):
    """A residual stream of tokens with one kind of attention, and units of an MLP."""

    def __init__(
        self,
        attention: Callable[[], nn.Module],
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
    ) -> None:
        super().__init__()
        self.inward = nn.Linear(INPUTS, WIDTH)
        self.places = nn.Parameter(torch.randn(1, 6, WIDTH))
        self.first, self.attention = norm(WIDTH), attention()
        self.second = norm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 128), nn.GELU(), nn.Linear(128, WIDTH))
        self.last, self.head = norm(WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inward(x) + self.places
        x = x + self.attention(self.first(x))
        x = x + self.mlp(self.second(x))
        return self.head(self.last(x).mean(1))


class OwnNorm(nn.Module):
    """Divides by statistics in a step of its own (EvoNorm)."""

    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(channels) + 0.5), None
        self.slope = nn.Parameter(torch.rand(channels) + 0.5)
        self.register_buffer("running_var", torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, -1, 1, 1)
        spread = self.running_var.view(shape).sqrt()
        apart = (x.var((2, 3), unbiased=False, keepdim=True) + 1e-3).sqrt()
        return (
            x / torch.maximum(spread, x * self.slope.view(shape) + apart) * self.weight.view(shape)
        )


class Pictures(nn.Module):
    """Convolutions with a step between them."""

    def __init__(self, step: nn.Module) -> None:
        super().__init__()
        self.stem, self.step = nn.Conv2d(3, 32, 3, padding=1), step
        self.body, self.norm = nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.step(self.stem(x))
        return self.head(torch.relu(self.norm(self.body(x))).mean((2, 3)))


class Blurred(nn.Module):
    """The same fixed kernel over every channel, behind a border that repeats what is there."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        kernel = torch.tensor([1.0, 2.0, 1.0]).outer(torch.tensor([1.0, 2.0, 1.0])) / 16
        self.register_buffer("kernel", kernel.expand(32, 1, 3, 3).clone())

    def forward(self, x: Tensor) -> Tensor:
        x = pad(torch.relu(x), (1, 1, 1, 1), mode="reflect")
        return conv2d(x, self.kernel, groups=32)


class PaddedPool(nn.Module):
    """A border of minus infinity before a maximum."""

    def forward(self, x: Tensor) -> Tensor:
        return max_pool2d(pad(torch.relu(x), (0, 1, 0, 1), value=float("-inf")), 2, 1)


class Twice(nn.Module):
    """One layer, called two times on the same channels."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Conv2d(32, 32, 3, padding=1, groups=32)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x)
        x = x + self.shared(x)
        return torch.relu(x + self.shared(x))


class Words(nn.Module):
    """Tokens looked up in a table, with places of another length."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.words = nn.Parameter(torch.randn(WORDS, WIDTH))
        self.places = nn.Parameter(torch.randn(1, WIDTH, 3))
        self.norm = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 128), nn.GELU(), nn.Linear(128, WIDTH))
        self.last = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        if tied:
            self.head.weight = self.words

    def forward(self, x: Tensor) -> Tensor:
        places = nn.functional.interpolate(self.places, size=6, mode="linear").transpose(1, 2)
        x = embedding(x, self.words) + places
        return self.head(self.last(x + self.mlp(self.norm(x))))


class SideBySide(nn.Module):
    """Three streams that are laid beside each other and mixed with few numbers (CoaT)."""

    def __init__(self) -> None:
        super().__init__()
        self.streams = nn.ModuleList([nn.Linear(INPUTS, WIDTH) for _ in range(3)])
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH) for _ in range(3)])
        self.mix, self.head = nn.Conv1d(3, 1, 1), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        found = [
            norm(stream(x)).mean(1) for stream, norm in zip(self.streams, self.norms, strict=True)
        ]
        return self.head(self.mix(torch.stack(found, 1)).squeeze(1))


class OneForAll(nn.Module):
    """One channel that all others are multiplied with, and one that is added to them."""

    def __init__(self, step: str) -> None:
        super().__init__()
        self.step, self.narrow = step, nn.Conv2d(32, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x)
        one = torch.sigmoid(self.narrow(x))
        return torch.relu(x * one if self.step == "times" else x + one)


class FixedForEach(nn.Module):
    """A fixed number for each channel, which keeps every one in its place."""

    numbers: Tensor

    def __init__(self) -> None:
        super().__init__()
        numbers = torch.linspace(0.5, 2.0, 32).view(1, -1, 1, 1)
        self.register_buffer("numbers", numbers, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x) * self.numbers


class GroupSizes(nn.Module):
    """Channels by the size of their group, in steps (EvoNorm over groups)."""

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.relu(x).unflatten(1, (4, 8))
        return (parts / (parts.square().mean((2, 3, 4), keepdim=True) + 0.1).sqrt()).flatten(1, 2)
