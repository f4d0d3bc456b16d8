"""Steps that channels are followed through: each hides something from who does not know it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from passportize.alignment.alignment import align
from passportize.alignment.held_out import HeldOut
from passportize.alignment.spaces import MatrixKind
from passportize.alignment.tied_channels import TiedChannels, find_tied_channels
from passportize.attacks.disguise import disguise
from passportize.attacks.permutation import permute_channels
from tests.support import looked_through as kinds


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def built(make: object, *arguments: object) -> nn.Module:
    """A model as after a training."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: nn.Module = make(*arguments)  # type: ignore[operator]
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)) and module.weight is not None:
                    module.weight.uniform_(0.5, 1.5)
                    module.bias.normal_(0, 0.1)
                if isinstance(module, nn.BatchNorm2d):
                    module.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
    return model.eval()


def moved_rows(tied: TiedChannels, name: str) -> int:
    """How many rows of a weight can move, or have a matrix on them."""
    rows: set[int] = set()
    sides = [(side.axis, side.places) for space in tied.spaces for side in space.sides]
    for at, places in [*(place for group in tied.groups for place in group.places), *sides]:
        axis = tied.axes[at]
        if axis.tensor == name and axis.role == "rows":
            rows |= set((axis.first + places).flatten().tolist())
    return len(rows)


def disguised(model: nn.Module, x: Tensor) -> nn.Module:
    """A copy under the full disguise, whose outputs are the same."""
    suspect = copy.deepcopy(model)
    disguise(suspect, drawn(1), example_inputs=x)
    with torch.no_grad():
        torch.testing.assert_close(suspect(x), model(x), atol=2e-4, rtol=2e-4)
    return suspect


def alike_rows(
    model: nn.Module, suspect: nn.Module, x: Tensor, signed: bool = False
) -> dict[str, float]:
    """Share of the rows of every weight that come back up to size and, by default, sign."""
    tied = find_tied_channels(suspect, x)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    bound = [name for name, shape in shapes.items() if name.endswith("weight") and len(shape) > 1]
    held_out = HeldOut(tied, shapes, bound)
    aligned = align(model.state_dict(), suspect.state_dict(), tied, held_out).tensors
    found = {}
    for name, own in model.state_dict().items():
        # Of a classifier of few rows a single one would decide.
        if name.endswith("weight") and own.dim() > 1 and own[0].numel() >= 16 < len(own):
            pair = [tensor.flatten(1) for tensor in (own, aligned[name])]
            # What writes a stream between LayerNorms is known up to a vector added to all rows.
            free = [tensor - tensor.mean(0) for tensor in pair]
            cosines = [nn.functional.cosine_similarity(*x) for x in (pair, free)]
            cosine = torch.maximum(*(x if signed else x.abs() for x in cosines))
            found[name] = float((cosine > 0.95).float().mean())
    return found


ATTENTION = [
    kinds.Attention,
    kinds.BiasOfParts,
    kinds.Cosine,
    kinds.Rotary,
    kinds.Halves,
    kinds.CrossCovariance,
    kinds.LinearAttention,
    kinds.TableOfHeads,
    kinds.ConvolvedValues,
    kinds.NormedQueries,
    kinds.NormedByLength,
    kinds.NormedAlike,
    kinds.FactorsOfChannels,
    kinds.NormedByOwnLength,
    kinds.Scales,
]


@pytest.mark.parametrize("kind", ATTENTION)
def test_attention_of_every_kind_comes_back(kind: type[nn.Module]) -> None:
    model, x = built(kinds.Tokens, kind), torch.randn(2, 6, kinds.INPUTS, generator=drawn())
    tied = find_tied_channels(model, x)
    assert moved_rows(tied, "attention.qkv.weight") == 3 * kinds.INNER
    (stream,) = [space for space in tied.spaces if space.kind is MatrixKind.CENTRED]
    assert stream.size == kinds.WIDTH
    suspect = disguised(model, x)
    for name in ("attention.qkv.weight", "attention.out.weight", "mlp.0.weight", "mlp.2.weight"):
        own, other = (m.state_dict()[name] for m in (model, suspect))
        cosine = nn.functional.cosine_similarity(own, other).abs()
        assert float((cosine > 0.9).float().mean()) < 0.2, name
    assert min(alike_rows(model, suspect, x).values()) >= 0.95


@pytest.mark.parametrize(
    ("kind", "sort", "size", "blocks"),
    [
        (kinds.Attention, MatrixKind.LINEAR, 16, 3),
        (kinds.BiasOfParts, MatrixKind.LINEAR, 16, 3),
        (kinds.TableOfHeads, MatrixKind.LINEAR, 16, 3),
        (kinds.Cosine, MatrixKind.ORTHOGONAL, 16, 3),
        (kinds.Rotary, MatrixKind.ROTARY, 2, 24),
        (kinds.Halves, MatrixKind.ROTARY, 2, 24),
    ],
)
def test_what_may_act_on_queries_and_keys(
    kind: type[nn.Module], sort: MatrixKind, size: int, blocks: int
) -> None:
    tied = find_tied_channels(built(kinds.Tokens, kind), torch.randn(2, 6, kinds.INPUTS))
    queries, values = [space for space in tied.spaces if space.group is None]
    assert (queries.kind, queries.size, queries.blocks) == (sort, size, blocks)
    assert (values.kind, values.size, values.blocks) == (MatrixKind.LINEAR, 16, 3)
    # Heads change places too, and what belongs to each with them.
    (heads,) = [group for group in tied.groups if group.size == kinds.HEADS]
    names = {tied.axes[at].tensor for at, _ in heads.places}
    table = {kinds.TableOfHeads: "attention.table", kinds.Cosine: "attention.scale"}.get(kind)
    assert {"attention.qkv.weight", "attention.out.weight"} <= names
    assert table is None or table in names


AS_WHOLES = {
    kinds.NormedAlike: set(),
    kinds.NormedByOwnLength: set(),
    kinds.CrossCovariance: {"attention.scale"},
    kinds.LinearAttention: set(),
    kinds.ConvolvedValues: {"attention.local.weight"},
    kinds.NormedQueries: set(),
    kinds.NormedByLength: set(),
    kinds.FactorsOfChannels: set(),
    kinds.Scales: {"attention.near.weight", "attention.mixed.weight"},
}


@pytest.mark.parametrize("kind", AS_WHOLES)
def test_heads_whose_channels_are_seen_by_themselves_change_places(kind: type[nn.Module]) -> None:
    """With all that belongs to them, and nothing that is the same to all of them."""
    model, x = built(kinds.Tokens, kind), torch.randn(2, 6, kinds.INPUTS, generator=drawn())
    tied = find_tied_channels(model, x)
    (heads,) = tied.exchanges
    assert heads.size == kinds.HEADS
    names = {tied.axes[at].tensor for at, _ in heads.places}
    assert {"attention.qkv.weight", "attention.out.weight"} | AS_WHOLES[kind] <= names
    assert not any(part in name for name in names for part in ("norm", "factor", "shift"))
    moved = copy.deepcopy(model)
    with torch.no_grad():
        tied.permute(dict(moved.named_parameters()), {0: torch.tensor([1, 2, 0])})
        torch.testing.assert_close(moved(x), model(x), atol=1e-5, rtol=1e-5)
    rows = [m.state_dict()["attention.qkv.weight"] for m in (moved, model)]
    assert not (rows[0] == rows[1]).all(1).any()
    found = alike_rows(model, moved, x)
    assert min(found["attention.qkv.weight"], found["attention.out.weight"]) >= 0.95


@pytest.mark.parametrize("kind", [kinds.WeighedHeads, kinds.UnknownScores])
def test_heads_that_something_tells_apart_stay(kind: type[nn.Module]) -> None:
    model, x = built(kinds.Tokens, kind), torch.randn(2, 6, kinds.INPUTS)
    assert not find_tied_channels(model, x).exchanges


@pytest.mark.parametrize(
    ("kind", "kinds_of_matrices"),
    [
        (kinds.SharedKeys, {(MatrixKind.LINEAR, 16, 3)}),
        (kinds.RepeatedKeys, {(MatrixKind.LINEAR, 16, 3)}),
        (kinds.SharedKeysTurned, {(MatrixKind.ROTARY, 2, 24), (MatrixKind.LINEAR, 16, 3)}),
    ],
)
def test_keys_that_several_heads_of_queries_share(
    kind: type[nn.Module], kinds_of_matrices: set[object]
) -> None:
    model, x = built(kinds.Tokens, kind), torch.randn(2, 6, kinds.INPUTS, generator=drawn())
    tied = find_tied_channels(model, x)
    queries, values = [space for space in tied.spaces if space.group is None]
    assert {(s.kind, s.size, s.blocks) for s in (queries, values)} == kinds_of_matrices
    copies = {tied.axes[side.axis].tensor: side.places.shape[2] for side in queries.sides}
    assert copies["attention.q.weight"] == 2 * copies["attention.k.weight"]
    suspect = disguised(model, x)
    own, other = (m.state_dict()["attention.q.weight"] for m in (model, suspect))
    assert float((nn.functional.cosine_similarity(own, other).abs() > 0.9).float().mean()) < 0.2
    assert min(alike_rows(model, suspect, x).values()) >= 0.95


SHARING = {
    kinds.OneForAllHeads: (1, kinds.HEADS, True),
    kinds.SharedKeys: (kinds.HEADS, 2, True),
    kinds.SharedKeysTurned: (kinds.HEADS, 2, True),
    kinds.RepeatedKeys: (kinds.HEADS, 2, True),
    kinds.SharedKeysNormed: (kinds.HEADS, 2, False),
    kinds.NumberedHeads: (kinds.HEADS, 2, True),
}
"""How many keys there are, how many heads share each, and whether matrices act on these."""


@pytest.mark.parametrize(("kind", "shares"), SHARING.items())
def test_heads_of_queries_change_places_while_their_keys_stay(
    kind: type[nn.Module], shares: tuple[int, int, bool]
) -> None:
    model, x = built(kinds.Tokens, kind), torch.randn(2, 6, kinds.INPUTS, generator=drawn())
    tied = find_tied_channels(model, x)
    keys, heads, mixed = shares
    assert [unit.size for unit in tied.query_heads] == [heads] * keys
    assert all((unit.keys is not None) == mixed for unit in tied.query_heads)
    suspect = copy.deepcopy(model)
    tensors = dict(suspect.named_parameters())
    first = len(tied.exchanges) + len(tied.groups)
    with torch.no_grad():
        tied.permute(tensors, {first: torch.arange(heads).roll(1)})
        torch.testing.assert_close(suspect(x), model(x), atol=1e-4, rtol=1e-4)
    own, other = (m.state_dict()["attention.q.weight"] for m in (model, suspect))
    moved = (own != other).any(1).view(keys, heads, -1)
    # The thief moves heads of one key; those of all others, keys and values stay.
    assert sorted(moved.all(2).sum(1).tolist()) == [0] * (keys - 1) + [heads]
    assert min(alike_rows(model, suspect, x).values()) >= 0.95
    assert min(alike_rows(model, disguised(model, x), x).values()) >= 0.95


@pytest.mark.parametrize("norm", [kinds.LengthNorm, kinds.OnePlusNorm])
def test_norms_of_a_class_of_their_own_on_a_stream(norm: type[nn.Module]) -> None:
    model = built(kinds.Tokens, kinds.Attention, norm)
    x = torch.randn(2, 6, kinds.INPUTS, generator=drawn())
    (stream,) = [s for s in find_tied_channels(model, x).spaces if s.kind is MatrixKind.ORTHOGONAL]
    assert stream.size == kinds.WIDTH
    suspect = disguised(model, x)
    own, other = (m.state_dict()["mlp.0.weight"] for m in (model, suspect))
    assert float((nn.functional.cosine_similarity(own, other).abs() > 0.9).float().mean()) < 0.2
    assert min(alike_rows(model, suspect, x).values()) >= 0.95


def test_what_a_model_has_computed_for_a_device_moves_with_its_parameters() -> None:
    model, x = built(kinds.Tokens, kinds.KeptTable), torch.randn(2, 6, kinds.INPUTS)
    fresh = find_tied_channels(model, x)
    with torch.no_grad():
        model(x)
    kept = model.attention.kept["cpu"]  # type: ignore[union-attr,index]
    tied = find_tied_channels(model, x)
    assert [group.size for group in tied.groups] == [group.size for group in fresh.groups]
    assert kinds.HEADS in [group.size for group in tied.groups]
    assert model.attention.kept["cpu"] is kept  # type: ignore[union-attr,index]


def test_keys_and_values_that_all_heads_share() -> None:
    model, x = built(kinds.Tokens, kinds.OneForAllHeads), torch.randn(2, 6, kinds.INPUTS)
    spaces = [s for s in find_tied_channels(model, x).spaces if s.kind is MatrixKind.LINEAR]
    copies = [[side.places.shape[2] for side in space.sides] for space in spaces]
    assert sorted(copies) == [[1, 1, kinds.HEADS], [kinds.HEADS, kinds.HEADS, 1, 1]]
    suspect = disguised(model, x)
    assert disguise(copy.deepcopy(model), drawn(1), example_inputs=x).mixed == 96 + 16 + 16
    assert min(alike_rows(model, suspect, x).values()) >= 0.95


def test_values_go_through_weights_that_are_not_known() -> None:
    model, x = (
        built(kinds.Tokens, kinds.UnknownScores),
        torch.randn(2, 6, kinds.INPUTS, generator=drawn()),
    )
    tied = find_tied_channels(model, x)
    assert moved_rows(tied, "attention.qkv.weight") == kinds.INNER
    found = alike_rows(model, disguised(model, x), x)
    assert min(found.values()) >= 0.95


STEPS = {
    "blur": kinds.Blurred,
    "padded pool": kinds.PaddedPool,
    "called twice": kinds.Twice,
    "own norm": lambda: kinds.OwnNorm(32),
    "groups by their size": kinds.GroupSizes,
    "times one channel": lambda: kinds.OneForAll("times"),
    "plus one channel": lambda: kinds.OneForAll("plus"),
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_steps_between_convolutions(step: object) -> None:
    model = built(lambda: kinds.Pictures(step()))  # type: ignore[operator]
    x = torch.randn(2, 3, 12, 12, generator=drawn())
    tied = find_tied_channels(model, x)
    assert moved_rows(tied, "stem.weight") == moved_rows(tied, "body.weight") == 32
    suspect = disguised(model, x)
    # Nothing that was thought to move had to be put back.
    again = copy.deepcopy(model)
    assert len(permute_channels(again, drawn(2), example_inputs=x)) == len(tied.units)
    own, other = (m.state_dict()["stem.weight"].flatten(1) for m in (model, suspect))
    assert float((nn.functional.cosine_similarity(own, other).abs() > 0.9).float().mean()) < 0.5
    found = alike_rows(model, suspect, x)
    assert found["stem.weight"] == found["body.weight"] == 1.0


def test_fixed_numbers_of_their_own_keep_channels_in_their_places() -> None:
    model, x = built(lambda: kinds.Pictures(kinds.FixedForEach())), torch.randn(2, 3, 12, 12)
    tied = find_tied_channels(model, x)
    assert moved_rows(tied, "stem.weight") == 0 and moved_rows(tied, "body.weight") == 32


def test_a_table_of_words_and_places_of_another_length_write_the_stream() -> None:
    model, x = built(kinds.Words), torch.randint(kinds.WORDS, (2, 6), generator=drawn())
    (stream,) = [s for s in find_tied_channels(model, x).spaces if s.kind is MatrixKind.CENTRED]
    assert stream.size == kinds.WIDTH
    found = alike_rows(model, disguised(model, x), x)
    assert min(found["mlp.0.weight"], found["mlp.2.weight"]) >= 0.95


def test_a_table_that_is_also_the_classifier_stays_as_it_is() -> None:
    model, x = built(kinds.Words, True), torch.randint(kinds.WORDS, (2, 6), generator=drawn())
    tied = find_tied_channels(model, x)
    assert not [space for space in tied.spaces if space.kind is MatrixKind.CENTRED]
    suspect = disguised(model, x)
    assert torch.equal(suspect.words, model.words)  # type: ignore[arg-type]


def test_streams_that_are_laid_side_by_side_have_the_same_channels() -> None:
    model, x = built(kinds.SideBySide), torch.randn(2, 6, kinds.INPUTS, generator=drawn())
    tied = find_tied_channels(model, x)
    assert all(moved_rows(tied, f"streams.{at}.weight") == kinds.WIDTH for at in range(3))
    assert min(alike_rows(model, disguised(model, x), x).values()) == 1.0
