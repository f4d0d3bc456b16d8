"""Planning and surgery: what is chosen; bad input, each with its error and an untouched model."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import passportize as pp
from passportize import errors
from passportize.layers.model import passport_layers
from passportize.signature.site import Role, Site
from tests.support.round_trip import ModelSnapshot

PASSPORT = pp.Passport.generate("Acme", date="2026-01-31", secret=bytes(range(32)))
INPUT = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two convolutions with norms, one norm that never runs, one that has no weight to bind to."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.idle = nn.BatchNorm2d(16)
        self.local = nn.LocalResponseNorm(3)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.local(torch.relu(self.bn2(self.conv2(x))))
        return self.fc(x.mean((2, 3)))


def passportize(model: nn.Module, **options) -> nn.Module:
    return pp.passportize(model, options.pop("passport", PASSPORT), example_inputs=INPUT, **options)


def roles(plan: pp.Plan) -> dict[str, str]:
    return {site.name: site.role.value for site in plan.sites}


# --- plan ----------------------------------------------------------------------------------------


def test_plan_counts_every_norm_and_says_why() -> None:
    model = Net()
    before = ModelSnapshot.of(model)
    plan = pp.plan(model, example_inputs=INPUT)
    before.check(model)
    assert roles(plan) == {
        "bn1": "bound",
        "bn2": "bound",
        "idle": "unreached",
        "local": "skipped",
    }
    assert plan.bits == 32
    first = plan.sites[0]
    assert first.anchor is not None and first.anchor.parts[0].weight == "conv1.weight"
    assert first.fan_in == 27 and first.layer_type == "torch.nn.BatchNorm2d"
    text = str(plan)
    assert "conv1.weight" in text and "32 bits" in text and "nothing to bind" in text
    record = json.loads(json.dumps(plan.to_dict()))
    assert [Site.from_dict(site) for site in record["sites"]] == list(plan.sites)


@pytest.mark.parametrize("where", ["bn2", "bn2*", ["bn2"], lambda name: name == "bn2"])
def test_where_binds_some_and_keeps_the_statistics_of_the_others_apart(where) -> None:
    plan = pp.plan(Net(), where=where, example_inputs=INPUT)
    assert roles(plan)["bn2"] == "bound"
    assert roles(plan)["bn1"] == "statistics"
    signature = pp.plan(
        Net(), where=where, example_inputs=INPUT, config=pp.PassportConfig.signature()
    )
    assert roles(signature)["bn1"] == "skipped"


def test_frozen_anchors_are_left_out_unless_asked_for() -> None:
    model = Net()
    model.conv1.weight.requires_grad_(False)
    plan = pp.plan(model, example_inputs=INPUT)
    assert roles(plan)["bn1"] == "statistics" and "frozen" in plan.sites[0].reason
    plan = pp.plan(model, example_inputs=INPUT, include_frozen=True)
    assert roles(plan)["bn1"] == "bound"


def test_short_rows_carry_no_bit() -> None:
    model = nn.Sequential(nn.Conv1d(3, 16, 1), nn.BatchNorm1d(16), nn.Conv1d(16, 8, 1))
    plan = pp.plan(model, example_inputs=torch.randn(2, 3, 4))
    assert plan.role(Role.STATISTICS)[0].reason.startswith("a row of 0.weight has 3 entries")


def test_overrides_change_some_sites() -> None:
    model = passportize(
        Net(), overrides={"bn1": pp.PassportConfig.signature(), "bn2": {"margin": 1.0}}
    )
    configs = {name: layer.passport.config for name, layer in passport_layers(model).items()}
    assert configs["bn1"].formulation == "signature"
    assert configs["bn2"].formulation == "keyed" and configs["bn2"].margin == 1.0


# --- bad input: one class of error each, and the model as before ----------------------------------


def lazy() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.LazyBatchNorm2d())


def taken() -> nn.Module:
    model = Net()
    model.bn1.passport = None
    return model


BAD = {
    "not a model": (lambda: {"a": 1}, {}, errors.InvalidArgument, "torch.nn.Module"),
    "not a passport": (Net, {"passport": "secret"}, errors.InvalidArgument, "Passport"),
    "not a config": (Net, {"config": "keyed"}, errors.InvalidArgument, "PassportConfig"),
    "no norm": (lambda: nn.Linear(3, 3), {}, errors.NoNormalization, "no normalization"),
    "lazy": (lazy, {}, errors.UninitializedModule, "run the model once"),
    "data parallel": (
        lambda: nn.DataParallel(Net()),
        {},
        errors.WrappedModel,
        "DataParallel afterwards",
    ),
    "compiled": (lambda: torch.compile(Net()), {}, errors.WrappedModel, "compile afterwards"),
    "attribute taken": (taken, {}, errors.SurgeryError, "already has an attribute"),
    "unknown place": (Net, {"where": "bm1"}, errors.UnknownSite, "did you mean bn1"),
    "where of another type": (Net, {"where": 3}, errors.InvalidArgument, "glob pattern"),
    "override nowhere": (Net, {"overrides": {"x*": {}}}, errors.UnknownSite, "x\\*"),
    "override of another type": (Net, {"overrides": {"bn1": 3}}, errors.InvalidArgument, "bn1"),
    "override makes no sense": (
        Net,
        {"overrides": {"bn1": {"margin": -1}}},
        errors.InvalidArgument,
        "margin",
    ),
    "private branch in a signature": (
        Net,
        {
            "config": pp.PassportConfig.signature(),
            "overrides": {"bn1": pp.PassportConfig.keyed()},
        },
        errors.InvalidArgument,
        "runs no private branch",
    ),
    "anchor that does not exist": (
        Net,
        {"anchors": {"bn1": "conv9.weight"}},
        errors.AnchorNotFound,
        "conv9",
    ),
    "anchor of another width": (
        Net,
        {"anchors": {"bn1": "fc.bias"}},
        errors.AnchorNotFound,
        "fc.bias",
    ),
    "nothing bound": (
        Net,
        {"where": lambda name: False},
        errors.DegenerateSite,
        "can carry a signature",
    ),
}


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_and_leaves_the_model(case: str) -> None:
    make, options, error, text = BAD[case]
    model = make()
    before = ModelSnapshot.of(model) if isinstance(model, nn.Module) and case != "lazy" else None
    with pytest.raises(error, match=text) as caught:
        passportize(model, **options)
    assert isinstance(caught.value, pp.PassportizeError)
    if before is not None:
        before.check(model)


def test_the_wrong_input_is_an_error_of_the_example() -> None:
    model = Net()
    before = ModelSnapshot.of(model)
    with pytest.raises(errors.TracingError):
        pp.passportize(model, PASSPORT, example_inputs=torch.randn(2, 7, 8, 8))
    before.check(model)


# --- adapters of the user's own -------------------------------------------------------------------


def test_register_adapter_refuses_what_does_not_fit() -> None:
    class Norm(nn.BatchNorm2d):
        pass

    class Stranger(pp.PassportLayer):
        pass

    class Other(pp.PassportLayer, nn.BatchNorm2d):
        pass

    with pytest.raises(errors.UnsupportedNorm, match="must be a class that derives"):
        pp.register_adapter(Norm, Stranger)
    with pytest.raises(errors.UnsupportedNorm, match="not a subclass"):
        pp.register_adapter(3, Other)  # type: ignore[arg-type]
    with pytest.raises(errors.UnsupportedNorm, match="already has the adapter"):
        pp.register_adapter(nn.BatchNorm2d, Other)


# --- configurations -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"margin": -1.0},
        {"margin": float("nan")},
        {"sign_weight": "much"},
        {"private_fraction": 0},
        {"private_fraction": 1.5},
        {"private_every": 0},
        {"sign_every": 1.5},
        {"bottleneck": True},
        {"passes": "both"},
        {"unknown": 1},
        {"formulation": "paper"},
    ],
)
def test_configurations_that_make_no_sense(changes) -> None:
    with pytest.raises(errors.InvalidArgument, match=next(iter(changes))):
        pp.PassportConfig.keyed(**changes)


def test_configurations_survive_json() -> None:
    for preset in (pp.PassportConfig.keyed, pp.PassportConfig.paper, pp.PassportConfig.signature):
        config = preset(margin=1.25)
        assert pp.PassportConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(errors.InvalidArgument, match="incomplete"):
        pp.PassportConfig.from_dict({"margin": 1.0})
    with pytest.raises(errors.InvalidArgument, match="unknown settings"):
        pp.PassportConfig.from_dict({**pp.PassportConfig.keyed().to_dict(), "extra": 1})
