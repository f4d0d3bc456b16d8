"""One norm of a plan explained: what is said agrees with the anchor, however it was found."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
import timm
import torch
from torch import nn

import passportize as pp
from passportize.anchors.trail import SOURCES, TAKEN
from passportize.errors import UnknownSite
from passportize.signature.site import Role
from tests.support.point_cloud_models import POINT_CLOUD_MODELS

DGCNN = POINT_CLOUD_MODELS["dgcnn"]


class Joined(nn.Module):
    """A concatenation; norms in front of everything, behind a product, and idle."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(3)
        self.one, self.two = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 24, 3)
        self.joined = nn.BatchNorm2d(32)
        self.mixed = nn.BatchNorm1d(32)
        self.idle = nn.BatchNorm2d(5)
        self.again = self.joined
        self.scale = nn.Parameter(torch.ones(32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        x = self.joined(torch.cat([self.one(x), self.two(x)], 1)).mean((2, 3))
        x = self.mixed(x @ (x.t() @ x))
        return nn.functional.layer_norm(x, (32,), self.scale)


MODELS = {
    "joined": (Joined, torch.randn(2, 3, 8, 8)),
    "resnet10t": (lambda: timm.create_model("resnet10t"), None),
    "test_vit": (lambda: timm.create_model("test_vit"), None),
    "densenet121": (lambda: timm.create_model("densenet121"), None),
    "dgcnn": (lambda: DGCNN.factory(5), lambda: DGCNN.inputs(0, 2)),
}


def planned(name: str, **settings: object) -> pp.Plan:
    build, inputs = MODELS[name]
    given = inputs() if callable(inputs) else inputs
    return pp.plan(build(), example_inputs=given, **settings)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_said_agrees_with_the_anchor(name: str) -> None:
    plan = planned(name)
    for site in plan.sites:
        explanation = plan.explain(site.name)
        answer = explanation.trail.answer
        assert explanation.site == site
        assert json.loads(json.dumps(explanation.to_dict()))["site"]["name"] == site.name
        if site.role is Role.BOUND:
            assert site.anchor is not None and answer is not None and answer.end is not None
            taken = [part.weight for part in answer.parts]
            assert taken == [part.weight for part in site.anchor.parts]
            assert tuple(step.name for step in answer.crossed) == site.anchor.crossed
            assert answer.source in (*SOURCES, "own")
            text = str(explanation)
            assert all(f"{weight}, rows " in text for weight in set(taken[:3]))
            assert "  taken  " in text and ": found" in text
        else:
            assert str(explanation).startswith(f"{site.name} (") and site.role.value in str(
                explanation
            )
            assert site.reason in str(explanation)


def test_the_steps_between_are_named_with_their_modules() -> None:
    explanation = pp.plan(timm.create_model("test_vit")).explain("blocks.1.norm2")
    answer = explanation.trail.answer
    assert answer is not None and answer.start is not None
    assert answer.start.name == "add" and answer.start.where == "blocks.1"
    assert [step.name for step in answer.crossed][-1] == "add"
    assert "began at     add (blocks.1)" in str(explanation)


def test_pieces_of_a_concatenation() -> None:
    explanation = planned("joined").explain("joined")
    answer = explanation.trail.answer
    assert answer is not None and answer.rule == "concat" and answer.end is not None
    pieces = [[part.weight for part in piece.parts] for piece in answer.end.pieces]
    assert pieces == [["one.weight"], ["two.weight"]]
    assert "piece: 24 channels from two.weight" in str(explanation)


def test_aliases_are_taken_too() -> None:
    plan = planned("joined")
    assert plan.explain("again") == plan.explain("joined")
    assert plan.explain("again").site.aliases == ("again",)


def test_a_norm_in_front_of_everything_is_looked_for_downstream() -> None:
    trail = planned("joined").explain("first").trail
    upstream, downstream = trail.attempts[:2]
    assert upstream.rule == "upstream" and not upstream.parts
    assert [met.step.name for met in upstream.met if met.step] == ["input"]
    assert downstream.rule == "downstream" and downstream.parts
    assert downstream.end is not None and downstream.end.verdict == TAKEN


def test_where_it_stopped_and_why() -> None:
    explanation = planned("joined").explain("mixed")
    first = explanation.trail.attempts[0]
    assert first.source == "fx-meta" and not first.parts
    assert [met.step.name for met in first.met if met.step] == ["matmul"]
    assert "not taken    matmul" in str(explanation)


def test_norms_that_never_run() -> None:
    plan = planned("joined")
    assert plan.explain("idle").site.role is Role.UNREACHED
    assert "does not run" in str(plan.explain("idle"))
    assert plan.explain("idle").trail.answer is None


def test_a_weight_that_the_user_named() -> None:
    plan = pp.plan(
        Joined(), example_inputs=torch.randn(2, 3, 8, 8), anchors={"first": "one.weight"}
    )
    explanation = plan.explain("first")
    answer = explanation.trail.answer
    assert answer is not None and answer.source == "user"
    assert "one.weight" in str(explanation)


def test_layers_that_carry_bits_themselves() -> None:
    net = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 32))
    plan = pp.plan(net, config=pp.PassportConfig.signature())
    answer = plan.explain("2").trail.answer
    assert answer is not None and answer.source == "own" and answer.parts[0].weight == "2.weight"


def test_without_shapes_the_other_graph_is_asked() -> None:
    net = nn.Sequential(nn.Linear(64, 96), nn.BatchNorm1d(96))
    net.register_forward_pre_hook(lambda module, args: None)
    plan = pp.plan(net)
    explanation = plan.explain("1")
    assert explanation.trail.answer is not None
    assert {attempt.source for attempt in explanation.trail.attempts} <= set(SOURCES)


def test_unknown_names_are_met_with_close_ones() -> None:
    with pytest.raises(UnknownSite, match=r"'joind' is none of .* Did you mean joined"):
        planned("joined").explain("joind")


def test_a_plan_is_a_value_that_holds_no_module() -> None:
    plan = planned("joined")
    again = pickle.loads(pickle.dumps(plan))
    assert again == plan and str(again.explain("joined")) == str(plan.explain("joined"))
    assert copy.deepcopy(plan).explain("first") == plan.explain("first")
    assert b"torch" not in pickle.dumps(plan.trails).replace(b"torch.nn", b"")
