"""Layers cut in two, multiplied into one, and norms made layers are undone; strangers are not."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import passportize as pp
from passportize.attacks.cut_layers import cut_layers
from passportize.attacks.disguise import disguise
from passportize.attacks.dummy_neurons import add_dummy_neurons
from passportize.errors import InvalidArgument
from passportize.release.claim import claim_of
from passportize.verification.other_depth import Refitted, in_released_layers
from tests.support.depths import Chained, Sums, WithoutFactors, in_one, in_parts, reshaped, shared
from tests.support.small_protected import PASSPORT
from tests.support.widths import (
    EXAMPLE,
    FAMILIES,
    Residual,
    as_trained,
    judged,
    noised,
    outputs,
    released,
    rounded,
    seeded,
    stolen,
    transformer,
)
from tests.verification.test_identification import released as licensed
from tests.verification.test_refolded_norms import folded

pytestmark = pytest.mark.filterwarnings(
    "ignore::passportize.training.embedding.TrainedWeightsWarning"
)


WAYS = {
    "cut": ("layers",),
    "norms": ("norms",),
    "cut twice": ("layers", "norms", "layers"),
    "multiplied": ("multiplied",),
    "multiplied and cut": ("multiplied", "layers"),
}
CASES = [
    *((family, "cut") for family in ("residual", "dense", "inverted", "transformer", "chained")),
    *((family, "norms") for family in ("residual", "dense", "inverted")),
    *((family, "cut twice") for family in ("dense", "inverted", "chained")),
    ("chained", "multiplied"),
    ("chained", "multiplied and cut"),
]


@pytest.mark.parametrize(("family", "way"), CASES)
@pytest.mark.parametrize("disguised", [False, True], ids=["alone", "disguised"])
def test_undone_alone_and_with_every_other_disguise(family: str, way: str, disguised: bool) -> None:
    suspect = stolen(family)
    if disguised:
        disguise(suspect, seeded(3), example_inputs=EXAMPLE)
    reshaped(suspect, *WAYS[way])
    before = outputs(stolen(family))
    assert float((outputs(suspect) - before).abs().max()) < 1e-4 * float(before.abs().max())
    plain = pp.verify(suspect, PASSPORT, released(family)[1])
    if disguised or way not in ("norms", "multiplied"):
        # Without the other disguise layers that nobody touched read plainly.
        assert plain.accepted is not True
        verdict = judged(family, suspect)
        assert verdict.accepted is True and verdict.links is not None
        assert verdict.links.aligned_matched >= 0.98 * verdict.links.entries_matched
        assert "the suspect has other layers" in verdict.links.narrowed
        assert verdict.links.narrowed in str(verdict)


@pytest.mark.parametrize("family", ["residual", "inverted", "chained"])
def test_norms_that_were_folded_in_a_live_suspect(family: str) -> None:
    suspect = stolen(family)
    disguise(suspect, seeded(3), example_inputs=EXAMPLE)
    links = judged(family, folded(suspect)).links
    assert links is not None and links.accepted
    assert links.aligned_matched >= 0.98 * links.entries_matched
    links = judged(family, folded(as_trained(FAMILIES[family], 7))).links
    assert links is not None and links.accepted is False and links.aligned_strength < 12


@pytest.mark.parametrize(("family", "way"), CASES)
def test_a_stranger_stays_at_chance(family: str, way: str) -> None:
    suspect = reshaped(as_trained(FAMILIES[family], 7), *WAYS[way])
    verdict = judged(family, suspect)
    links = verdict.links
    assert verdict.accepted is False and links is not None and links.similarity is not None
    assert abs(links.similarity.likeness) < 0.1 and links.aligned_strength < 12


def test_strangers_bits_are_at_chance_where_products_are_parted() -> None:
    matched = total = 0
    for seed in range(8):
        suspect = reshaped(as_trained(Chained, 100 + seed), "multiplied")
        links = judged("chained", suspect).links
        assert links is not None and links.accepted is False
        matched, total = matched + links.aligned_matched, total + links.aligned_total
    assert abs(matched - total / 2) < 3.5 * (total / 4) ** 0.5


def test_what_only_a_product_says_is_named_and_not_read() -> None:
    suspect = stolen("chained")
    disguise(suspect, seeded(3), example_inputs=EXAMPLE)
    links = judged("chained", reshaped(suspect, "multiplied")).links
    assert links is not None and links.accepted
    named = links.narrowed.partition("; of ")[2]
    assert "square.0.weight, again.0.weight" in named and "only products are known" in named
    # The narrow layer and the separable convolution follow from their products.
    assert "narrow" not in named and "deep" not in named
    everything = judged("chained", reshaped(stolen("chained"), "layers")).links
    assert everything is not None and links.aligned_total == everything.aligned_total


@pytest.mark.parametrize("family", ["residual", "dense", "inverted", "transformer"])
@pytest.mark.parametrize("change", ["noise below", "noise on top", "rounded on top"])
def test_noise_and_rounding(family: str, change: str) -> None:
    if change == "noise below":
        suspect = reshaped(noised(stolen(family), 0.3), "layers")
    else:
        suspect = reshaped(stolen(family), "layers")
        # Noise on both halves counts for more than on the whole, by the matrix between them.
        suspect = noised(suspect, 0.1) if change == "noise on top" else rounded(suspect)
    links = judged(family, suspect).links
    assert links is not None and links.accepted
    if change == "rounded on top":
        assert links.aligned_matched >= 0.97 * links.entries_matched


def test_dummy_channels_and_layers_cut_in_two_at_once() -> None:
    suspect = stolen("residual")
    for kind in ("zero", "clique", "split"):
        assert add_dummy_neurons(suspect, kind, 0.2, seeded(1), EXAMPLE)
    disguise(suspect, seeded(3), example_inputs=EXAMPLE)
    links = judged("residual", reshaped(suspect, "layers", "norms")).links
    assert links is not None and links.accepted
    assert links.aligned_matched >= 0.98 * links.entries_matched
    assert "other layers" in links.narrowed and "channels more" in links.narrowed


def test_layers_put_in_where_several_read_one_tensor() -> None:
    suspect = stolen("residual")
    disguise(suspect, seeded(3), example_inputs=EXAMPLE)
    suspect = shared(suspect)
    before = outputs(stolen("residual"))
    assert float((outputs(suspect) - before).abs().max()) < 1e-4 * float(before.abs().max())
    links = judged("residual", suspect).links
    assert links is not None and links.accepted
    assert links.aligned_matched == links.entries_matched


@pytest.mark.parametrize("order", ["qkv", "kvq"])
@pytest.mark.parametrize("disguised", [False, True], ids=["alone", "disguised"])
def test_queries_keys_and_values_in_layers_of_their_own(order: str, disguised: bool) -> None:
    suspect = stolen("transformer")
    if disguised:
        disguise(suspect, seeded(3), example_inputs=EXAMPLE)
    in_parts(suspect, order)
    torch.testing.assert_close(outputs(suspect), outputs(stolen("transformer")), atol=1e-4, rtol=0)
    found = in_released_layers(suspect, released("transformer")[0], EXAMPLE)
    assert isinstance(found, Refitted)
    torch.testing.assert_close(outputs(found.module), outputs(suspect), atol=1e-4, rtol=0)
    if disguised:
        verdict = judged("transformer", suspect)
        assert verdict.accepted is True and verdict.links is not None
        assert verdict.links.aligned_matched >= 0.98 * verdict.links.entries_matched
    stranger = in_parts(as_trained(FAMILIES["transformer"], 7), order)
    links = judged("transformer", stranger).links
    assert links is not None and links.accepted is False and links.aligned_strength < 12


def test_queries_keys_and_values_in_one_layer_that_were_released_apart() -> None:
    suspect = stolen("parts")
    disguise(suspect, seeded(3), example_inputs=EXAMPLE)
    suspect = in_one(suspect)
    torch.testing.assert_close(outputs(suspect), outputs(stolen("parts")), atol=1e-4, rtol=0)
    links = judged("parts", suspect).links
    assert links is not None and links.accepted
    assert links.aligned_matched >= 0.98 * links.entries_matched


@torch.no_grad()
def test_a_norm_whose_factors_its_readers_have() -> None:
    suspect = stolen("transformer")
    disguise(suspect, seeded(3), example_inputs=EXAMPLE)
    for block in suspect.blocks:
        for key, reader in (("norm1", block.attn.qkv), ("norm2", block.mlp.fc1)):
            norm = getattr(block, key)
            reader.bias += reader.weight @ norm.bias
            reader.weight *= norm.weight
            setattr(block, key, WithoutFactors(norm))
    before = outputs(stolen("transformer"))
    assert float((outputs(suspect) - before).abs().max()) < 1e-4 * float(before.abs().max())
    links = judged("transformer", suspect).links
    assert links is not None and links.accepted
    assert links.aligned_matched >= 0.98 * links.entries_matched


def test_the_released_model_may_be_a_state_dict_beside_its_architecture() -> None:
    suspect = reshaped(stolen("residual"), "layers")
    state = released("residual")[0].state_dict()
    model = as_trained(Residual, 9)
    kept = copy.deepcopy(model.state_dict())
    assert judged("residual", suspect, released=state, model=model).accepted is True
    assert all(torch.equal(kept[name], value) for name, value in model.state_dict().items())
    verdict = judged("residual", suspect, released=state)
    assert verdict.accepted is None and "released=model" in verdict.reason
    with pytest.raises(InvalidArgument, match="does not load into Chained"):
        judged("residual", suspect, released=state, model=Chained())


def test_a_file_beside_a_model_of_the_suspects_architecture() -> None:
    suspect = reshaped(stolen("residual"), "layers", "norms")
    verdict = judged("residual", suspect.state_dict(), model=copy.deepcopy(suspect))
    assert verdict.accepted is True


def test_suspect_and_release_are_left_as_they_were() -> None:
    suspect = reshaped(stolen("chained"), "multiplied", "layers")
    original = released("chained")[0]
    before = [copy.deepcopy(model.state_dict()) for model in (suspect, original)]
    judged("chained", suspect)
    for model, state in zip((suspect, original), before, strict=True):
        after = model.state_dict()
        assert list(after) == list(state)
        assert all(torch.equal(state[name], after[name]) for name in state)


@pytest.mark.parametrize(
    ("family", "way"), [("residual", "cut twice"), ("dense", "norms"), ("chained", "multiplied")]
)
def test_in_the_released_layers_it_computes_what_it_did(family: str, way: str) -> None:
    suspect = reshaped(stolen(family), *WAYS[way])
    found = in_released_layers(suspect, released(family)[0], EXAMPLE)
    assert isinstance(found, Refitted)
    assert torch.allclose(outputs(found.module.eval()), outputs(suspect), atol=1e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38])
def test_wild_numbers_in_a_deeper_suspect_do_no_harm(value: float) -> None:
    suspect = stolen("chained")
    disguise(suspect, seeded(3), example_inputs=EXAMPLE)
    reshaped(suspect, "multiplied", "layers")
    with torch.no_grad():
        for parameter in suspect.parameters():
            parameter.view(-1)[0] = value
    links = judged("chained", suspect).links
    assert links is not None and "other layers" in links.narrowed


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: nn.Sequential(Residual(), nn.Linear(10, 10)), "stands where|corresponds"),
        (lambda: transformer(48), "stands where"),
    ],
)
def test_another_structure_is_said(make: object, reason: str) -> None:
    verdict = judged("residual", as_trained(make, 3))  # type: ignore[arg-type]
    links = verdict.links
    assert verdict.accepted is not True and links is not None
    if links.similarity is None:
        assert "no model of the released architecture" in verdict.reason
    else:
        assert abs(links.similarity.likeness) < 0.1


def test_a_licensee_is_told_by_a_deeper_copy() -> None:
    original, claim = licensed()
    passport = pp.Passport.generate("Acme", date="2026-01-31", secret=bytes(range(32)))
    suspect = copy.deepcopy(original)
    inputs = torch.rand(12, 8, 6, 6, generator=seeded(1))
    pp.mark_copy(suspect, passport.licensee("licensee 3"), claim, calibration=[inputs])
    disguise(suspect, seeded(2), example_inputs=inputs)
    assert cut_layers(suspect, seeded(1), example_inputs=inputs)
    names = [f"licensee {number}" for number in range(6)]
    options = {"released": original, "example_inputs": inputs}
    assert pp.identify(suspect, passport, names, claim, **options).named == ("licensee 3",)
    options["released"] = original.state_dict()
    found = pp.identify(suspect, passport, names, claim, **options, model=copy.deepcopy(original))
    assert found.named == ("licensee 3",)


@pytest.mark.parametrize("live", [True, False])
def test_a_deeper_copy_in_arbitration(live: bool) -> None:
    original, claim = released("residual")
    thief = pp.Passport.generate("Thief", date="2026-11-28", secret=bytes(range(1, 33)))
    other = as_trained(Residual, 4)
    pp.passportize(other, thief, config=pp.PassportConfig.signature(), example_inputs=EXAMPLE)
    pp.embed_signature(other)
    copied = stolen("residual")
    disguise(copied, seeded(3), example_inputs=EXAMPLE)
    owner = pp.Party(
        PASSPORT,
        claim,
        original if live else original.state_dict(),
        model=None if live else as_trained(Residual, 9),
    )
    found = pp.arbitrate(pp.Party(thief, claim_of(other), reshaped(copied, "layers")), owner)
    assert found.owner == 1 and "comes from these weights" in found.reason


class Bounded(nn.Module):
    """Two layers with a step between them that never acts."""

    def __init__(self, pair: nn.Sequential, step: nn.Module) -> None:
        super().__init__()
        self.first, self.second = pair
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.step(self.first(x)))


class Lifted(nn.Module):
    """A ReLU where everything is positive."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + 100) - 100


def bounded(model: nn.Module, step: nn.Module) -> nn.Module:
    """A model whose cut layers have a step between their halves, in place."""
    for name, module in list(model.named_modules()):
        halves = isinstance(module, nn.Sequential) and len(module) == 2
        if halves and all(isinstance(half, (nn.Linear, nn.Conv2d)) for half in module):
            model.set_submodule(name, Bounded(module, step))
    return model.eval()


@pytest.mark.parametrize("step", [nn.Hardtanh(-1e9, 1e9), nn.ReLU6(), Lifted(), Sums(1)])
@pytest.mark.parametrize("family", ["residual", "inverted", "transformer", "chained"])
def test_steps_that_never_act_part_no_layer(family: str, step: nn.Module) -> None:
    if isinstance(step, Sums) and family == "transformer":
        step = Sums(-1)
    suspect = stolen(family)
    disguise(suspect, seeded(3), example_inputs=EXAMPLE)
    bounded(reshaped(suspect, "layers"), step)
    verdict = judged(family, suspect)
    if isinstance(step, nn.ReLU6):
        # It acts, so this is another network, and nothing is put together over it.
        assert verdict.accepted is not True
        return
    before = outputs(stolen(family))
    assert float((outputs(suspect) - before).abs().max()) < 1e-3 * float(before.abs().max())
    assert verdict.accepted is True and verdict.links is not None
    assert verdict.links.aligned_matched >= 0.98 * verdict.links.entries_matched


def test_a_stranger_with_steps_that_never_act_stays_at_chance() -> None:
    suspect = bounded(reshaped(as_trained(FAMILIES["chained"], 7), "layers"), Lifted())
    links = judged("chained", suspect).links
    assert links is not None and links.accepted is False and links.aligned_strength < 12


class Extended(nn.Module):
    """A layer with a branch beside it that adds nothing, behind a gate that lets all through."""

    def __init__(self, layer: nn.Module, channels: int, adds: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = layer
        self.branch = nn.Sequential(
            nn.Conv2d(channels, 7, 3, padding=1), nn.ReLU(), nn.Conv2d(7, channels, 1)
        )
        self.gate = nn.Linear(channels, channels)
        with torch.no_grad():
            self.branch[2].weight.mul_(adds)
            self.branch[2].bias.mul_(adds)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        x = x + self.branch(x)
        return x * torch.sigmoid(60 + self.gate(x.mean((2, 3))))[:, :, None, None]


@pytest.mark.parametrize("adds", [0.0, 1e-5])
def test_branches_that_add_nothing_and_gates_that_are_open_are_left_out(adds: float) -> None:
    for model, accepted in ((stolen("residual"), True), (as_trained(Residual, 7), False)):
        disguise(model, seeded(3), example_inputs=EXAMPLE)
        before = outputs(model)
        for name in ("first", "third"):
            layer = model.get_submodule(name)
            channels = next(len(p) for p in layer.parameters())
            model.set_submodule(name, Extended(layer, channels, adds))
        model.eval()
        torch.testing.assert_close(outputs(model), before, atol=1e-3, rtol=0)
        links = judged("residual", model).links
        assert links is not None and links.accepted is accepted
        assert links.aligned_matched >= 0.98 * links.entries_matched or not accepted
