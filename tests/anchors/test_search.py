"""Where the weight of a norm is looked for, and what is said about it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from passportize.anchors.search import find_anchors
from passportize.errors import (
    AnchorNotFound,
    ExampleInputRequired,
    UninitializedModule,
    UnknownSite,
)
from passportize.signature.site import AnchorPart
from tests.support.anchor_models import (
    Attention,
    Built,
    Conditional,
    brief,
    check_rows,
    conv,
    norm_widths,
    search,
)


def test_norms_that_never_run_are_not_executed() -> None:
    model = Built(
        lambda m, x: m.aux(m.norm(m.a(x))) if m.training else m.norm(m.a(x)),
        a=nn.Linear(3, 4),
        norm=nn.LayerNorm(4),
        aux=nn.LayerNorm(4),
        never=nn.LayerNorm(4),
    )
    found = search(model, 2, 3)
    assert found.executed == {"norm", "aux"}
    assert set(found.anchors) == {"norm", "aux"}


def test_lazy_modules_are_named() -> None:
    model = nn.Sequential(nn.LazyLinear(4), nn.LayerNorm(4))
    with pytest.raises(UninitializedModule, match=r"^0 is lazy and has not seen data"):
        find_anchors(model, {"1": (4,)}, torch.zeros(2, 3))
    assert nn.parameter.is_lazy(model[0].weight)


def test_aliases_have_their_first_name() -> None:
    bn = nn.BatchNorm2d(8)
    model = Built(lambda m, x: m.seq(x), norm=bn, seq=nn.Sequential(conv(3, 8), bn, nn.LeakyReLU()))
    assert brief(search(model, 2, 3, 4, 4)) == ("upstream", ("seq.0.weight", 8, 0, 1))


def test_the_search_does_not_depend_on_names_sizes_or_mode() -> None:
    model = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 8), nn.BatchNorm2d(8))
    first = search(model, 2, 3, 8, 8).anchors
    assert search(model.train(), 2, 3, 8, 8).anchors == first
    assert search(model.eval(), 5, 3, 12, 9).anchors == first
    assert search(copy.deepcopy(model).to("meta")).anchors == first


def test_without_data_conditions_are_guessed() -> None:
    model = Conditional()
    found = search(model)
    assert found.method == "fx-meta" and found.executed is None
    assert brief(found) == ("upstream", ("last.weight", 4, 0, 1))
    assert brief(found, "tail")[0] == "concat"
    # Nothing shows that this one never runs, so it is bound, and said to be a guess.
    assert any(note.startswith("spare: bound to") for note in found.notes) or (
        "spare" not in found.anchors
    )


class Opaque(nn.Module):
    """Leaves torch between two layers, so that only the order of registration is left."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 6)
        self.middle = nn.LayerNorm(6)
        self.last = nn.Linear(6, 4)
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.from_numpy(self.first(x).detach().numpy())
        return self.norm(self.last(self.middle(x)))


def test_registration_order_is_never_silent() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), Opaque())
    found = search(model)
    assert found.anchors["1"].rule == "upstream"
    assert brief(found, "2.middle") == ("order", ("2.first.weight", 6, 0, 1))
    assert brief(found, "2.norm") == ("order", ("2.last.weight", 4, 0, 1))
    said = [note for note in found.notes if "by registration order" in note]
    assert [note.partition(":")[0] for note in said] == ["2.middle", "2.norm"]


def test_no_input_where_one_is_needed() -> None:
    class Needs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList([nn.LayerNorm(4)])

        def forward(self, data: Any) -> Tensor:
            return self.norms[0](torch.from_numpy(data["points"].numpy()))

    model = Needs()
    with pytest.raises(ExampleInputRequired, match="Pass example_inputs="):
        find_anchors(model, norm_widths(model))
    data = {"points": torch.randn(2, 4)}
    assert find_anchors(model, norm_widths(model), (data,)).executed == {"norms.0"}


def test_both_readings_agree_or_a_note_says_so() -> None:
    agreeing = Attention()
    found = find_anchors(agreeing, {"norm": (12,)}, torch.randn(2, 5, 12))
    assert found.method == "fx-meta" and found.notes == []
    # A gate over all positions misleads autograd, which does not know shapes.
    model = Built(
        lambda m, x: m.norm((y := m.a(x)) * m.g(y.mean((2, 3), keepdim=True))),
        a=conv(3, 8),
        g=conv(8, 8),
        norm=nn.BatchNorm2d(8),
    )
    found = find_anchors(model, norm_widths(model), torch.randn(2, 3, 4, 4))
    assert brief(found) == ("upstream", ("a.weight", 8, 0, 1))
    assert found.notes == [
        "norm: bound to a.weight by the fx graph; the autograd graph of a real forward pass says "
        "g.weight"
    ]


def test_the_user_decides() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 6), nn.Linear(6, 3))
    for weight, axis in (("2.weight", "output"), ("3.weight", "input")):
        anchor = search(model, 2, 4, user_anchors={"1": weight}).anchors["1"]
        assert anchor.rule == "user"
        assert anchor.parts == (AnchorPart(weight, 6, axis),)


@pytest.mark.parametrize(
    ("chosen", "error", "message"),
    [
        ({"1": "2.wieght"}, AnchorNotFound, r"no parameter of the model. Did you mean .*2\.weight"),
        ({"1": "3.weight"}, AnchorNotFound, r"shape \(3, 5\), so it neither makes nor reads 6"),
        ({"1": "0.bias"}, AnchorNotFound, r"1: its anchor '0.bias' has shape \(6,\)"),
        ({"11": "0.weight"}, UnknownSite, r"'11' is no normalization layer.* Did you mean 1\?"),
    ],
)
def test_wrong_choices(chosen: dict[str, str], error: type[Exception], message: str) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 5), nn.Linear(5, 3))
    with pytest.raises(error, match=message):
        search(model, 2, 4, user_anchors=chosen)


TIMM = [
    "resnet18", "test_vit", "test_vit4", "test_resnet", "test_convnext", "levit_128s",
    "densenet121", "lambda_resnet26t", "vit_tiny_patch16_224", "mobilenetv3_small_050",
    "ghostnet_050", "repvgg_a0", "resnest14d", "xcit_nano_12_p16_224", "edgenext_xx_small",
]  # fmt: skip


@pytest.mark.parametrize("name", TIMM)
def test_rows_of_timm_models_make_their_channels(name: str) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model(name)
    widths = norm_widths(model)
    found = find_anchors(model, widths)
    assert found.method == "fx-meta" and set(found.anchors) == found.executed == set(widths)
    some = list(widths)[:: max(1, len(widths) // 6)]
    size = model.default_cfg["input_size"]
    check_rows(model, torch.rand(1, *size), found, some)
