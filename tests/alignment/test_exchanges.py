"""Groups of grouped convolutions and norms that change places as wholes: found, moved, undone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from passportize.alignment.alignment import align
from passportize.alignment.tied_channels import TiedChannels, find_tied_channels
from passportize.attacks.neuron_scale import scale_neurons
from tests.support.exchanged import EXCHANGED, Grouped, Kept, Placed, Shuffled, Straddling
from tests.support.widths import EXAMPLE, as_trained, noised


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(model.named_buffers()), **dict(model.named_parameters())}


def on(tied: TiedChannels) -> list[tuple[int, set[str]]]:
    """For each exchange the number of groups, and the tensors in which they lie."""
    return [
        (exchange.size, {tied.axes[number].tensor for number, _ in exchange.places})
        for exchange in tied.exchanges
    ]


def test_all_that_writes_and_reads_a_group_moves_with_it() -> None:
    (found,) = on(find_tied_channels(as_trained(Grouped, 0), EXAMPLE))
    assert found[0] == 4
    weights = {"inward", "middle", "gate", "opened", "outward"}
    factors = {f"{name}.{key}" for name in ("inward_norm", "middle_norm") for key in ("bias",)}
    assert {f"{name}.weight" for name in weights} | {"opened.bias"} | factors <= found[1]
    assert not any(name.startswith(("stem", "last", "head")) for name in found[1])


def test_norms_along_a_stream_move_together_and_larger_groups_take_smaller_ones_along() -> None:
    normed = on(find_tied_channels(as_trained(EXCHANGED["group norms"], 0), EXAMPLE))
    (stream,) = [names for size, names in normed if "stem.weight" in names]
    assert {"stem_norm.weight", "outward_norm.bias", "last.weight"} <= stream
    assert [size for size, _ in normed] == [4, 4]
    nested = find_tied_channels(as_trained(EXCHANGED["nested"], 0), EXAMPLE)
    # Groups of the convolution; pairs of groups of a norm within each of them, before and behind
    # it; and those along the stream.
    assert sorted(size for size, _ in on(nested)) == [2] * 8 + [4, 8]


def test_a_parameter_for_each_place_and_channel_moves_with_the_groups() -> None:
    model = as_trained(Placed, 0)
    tied, before = find_tied_channels(model, EXAMPLE), model(EXAMPLE)
    ((size, names),) = on(tied)
    assert size == 4 and "places" in names
    with torch.no_grad():
        tied.permute(tensors_of(model), {0: torch.arange(4).roll(1)})
    assert torch.allclose(model(EXAMPLE), before, atol=1e-4 * float(before.detach().abs().max()))


def test_either_side_of_a_shuffle() -> None:
    tied = find_tied_channels(as_trained(Shuffled, 0), EXAMPLE)
    assert [size for size, _ in on(tied)] == [4, 4]
    (first,) = [names for _, names in on(tied) if "stem.weight" in names]
    (second,) = [names for _, names in on(tied) if "last.weight" in names]
    assert {"first.weight", "second.weight"} <= first & second


def test_what_the_picture_enters_and_what_lies_unevenly_stays() -> None:
    # The last group reads the picture itself, and the others can change places without it.
    assert [size for size, _ in on(find_tied_channels(Kept().eval(), EXAMPLE))] == [3]
    assert find_tied_channels(Straddling().eval(), EXAMPLE).exchanges == ()
    # Two of four groups have channels of the one part alone, and one of the other.
    (alike,) = find_tied_channels(Straddling(4).eval(), EXAMPLE).exchanges
    assert alike.size == 2
    ending = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1, groups=4)).eval()
    assert find_tied_channels(ending, EXAMPLE).exchanges == ()


@pytest.mark.parametrize("name", EXCHANGED)
def test_each_exchange_alone_changes_no_output(name: str) -> None:
    model = as_trained(EXCHANGED[name], 0)
    tied, before = find_tied_channels(model, EXAMPLE), model(EXAMPLE)
    for number, exchange in enumerate(tied.exchanges):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            tied.permute(tensors_of(moved), {number: torch.arange(exchange.size).roll(1)})
        assert torch.allclose(
            moved(EXAMPLE), before, atol=1e-4 * float(before.detach().abs().max())
        )
        assert any(
            not torch.equal(value, model.state_dict()[key])
            for key, value in moved.state_dict().items()
        )


@pytest.mark.parametrize("size", [0.0, 0.3])
@pytest.mark.parametrize("name", EXCHANGED)
@pytest.mark.parametrize("backwards", [False, True])
def test_exchanges_in_any_order_come_back(name: str, size: float, backwards: bool) -> None:
    """Wholes before channels or behind them, with factors and signs on top."""
    released = as_trained(EXCHANGED[name], 0)
    thief = noised(copy.deepcopy(released), size)
    expected = {key: value.clone() for key, value in thief.state_dict().items()}
    tied = find_tied_channels(thief, EXAMPLE)
    orders = {
        number: torch.randperm(unit.size, generator=seeded(number))
        for number, unit in enumerate(tied.units)
    }
    with torch.no_grad():
        tied.permute(
            tensors_of(thief), dict(reversed(list(orders.items()))) if backwards else orders
        )
    assert scale_neurons(thief, seeded(), decades=1, flip=0.5, example_inputs=EXAMPLE)
    found = align(released.state_dict(), thief.state_dict(), tied)
    for key, tensor in expected.items():
        if tensor.dim() > 1:
            rows = [part.flatten(1).float() for part in (found.tensors[key], tensor)]
            assert float(torch.cosine_similarity(*rows).min()) > 0.95, key
    assert found.moved > 0.8 * found.channels
