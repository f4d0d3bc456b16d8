"""What layers compute with, put together of what files keep: as the libraries themselves do it."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import passportize as pp
from passportize.errors import CheckpointError
from passportize.suspects import read_suspect
from passportize.suspects.effective import effective
from passportize.suspects.reading import plain_layers
from passportize.verification.suspect import open_suspect
from tests.support.found_files import OWNER, marked, quiet


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Linear(6, 5), nn.ConvTranspose2d(4, 6, 3))


def changed(kind: str) -> nn.Sequential:
    model = layers()
    for place, layer in enumerate(model):
        if kind == "prune":
            prune.random_unstructured(layer, "weight", 0.3)
            if place == 1:
                prune.l1_unstructured(layer, "bias", 0.4)
        elif kind == "prune twice":
            prune.random_unstructured(layer, "weight", 0.3)
            prune.ln_structured(layer, "weight", 0.5, n=2, dim=0)
        elif kind == "weight_norm":
            weight_norm(layer, dim=place % 2)
        elif kind == "weight_norm of all":
            weight_norm(layer, dim=None)
        elif kind == "parametrised":
            parametrizations.weight_norm(layer, dim=place % 2)
        elif kind == "spectral_norm":
            spectral_norm(layer)
        else:
            parametrizations.spectral_norm(layer)
    return model.eval()


KINDS = ["prune", "prune twice", "weight_norm", "weight_norm of all", "parametrised"]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("kind", [*KINDS, "spectral_norm", "spectral_norm, parametrised"])
def test_weights_are_those_of_the_layers(kind: str) -> None:
    model = changed(kind)
    with torch.no_grad():
        model[1](torch.zeros(1, 6))
        model[0](torch.zeros(1, 4, 5, 5))
        model[2](torch.zeros(1, 4, 5, 5))
    plain, notes = effective(model.state_dict())
    names = {name for name, _ in layers().named_parameters()}
    assert set(plain) == names and notes == []
    for name in names:
        place, _, attribute = name.partition(".")
        # Along another dimension than the first, spectral norm is a scale of the whole.
        wanted = getattr(model[int(place)], attribute).detach()
        if kind.startswith("spectral") and place == "2":
            ratio = plain[name] / wanted
            torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio))
        else:
            torch.testing.assert_close(plain[name], wanted)


def test_plain_weights_are_the_same_objects_in_the_same_order() -> None:
    state = layers().state_dict()
    plain, _ = effective(state)
    assert list(plain) == list(state) and all(plain[name] is state[name] for name in state)


def test_names_that_only_look_like_parts_stay() -> None:
    state = {
        "a.k_g": torch.ones(3),
        "a.k_v": torch.ones(4, 4),
        "b.weight_orig": torch.ones(2, 2),
        "c.weight_orig": torch.ones(2, 2),
        "c.weight_mask": torch.ones(3),
    }
    assert set(effective(state)[0]) == set(state)


# --- LoRA ----------------------------------------------------------------------------------------


class Adapted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.fc = nn.Linear(8, 6)
        self.words = nn.Embedding(10, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.fc(self.conv(x).mean((2, 3))) + self.words(torch.tensor([1])))


def adapted(**settings: object) -> nn.Module:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(
        target_modules=["conv", "fc", "words"], modules_to_save=["head"], r=2, **settings
    )
    with quiet():
        model = peft.get_peft_model(Adapted(), config)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value) * 0.1)
    return model


@pytest.mark.parametrize("settings", [{"lora_alpha": 2}, {"lora_alpha": 6}, {"use_rslora": True}])
@pytest.mark.parametrize("way", ["live", "pickled", "folder"])
def test_adapters_are_merged_as_peft_merges_them(
    settings: dict[str, object], way: str, tmp_path: Path
) -> None:
    model = adapted(**settings)
    if way == "live":
        plain, _ = plain_layers(model.state_dict(), model)
    elif way == "pickled":
        torch.save(model, tmp_path / "m.pt")
        plain = read_suspect(tmp_path / "m.pt").tensors
    else:
        # What PEFT keeps beside the base, in a folder of the base.
        with quiet():
            model.save_pretrained(str(tmp_path))
        base = {
            name.removeprefix("base_model.model.").replace(".base_layer", ""): value
            for name, value in model.state_dict().items()
            if "lora_" not in name and "modules_to_save" not in name
        }
        base = {name.replace(".original_module", ""): value for name, value in base.items()}
        torch.save(base, tmp_path / "pytorch_model.bin")
        plain = read_suspect(tmp_path).tensors
    with quiet():
        wanted = copy.deepcopy(model).merge_and_unload().state_dict()
    found = {name.removeprefix("base_model.model."): value for name, value in plain.items()}
    assert set(wanted) <= set(found)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, msg=name)


def test_dora_is_merged(tmp_path: Path) -> None:
    model = adapted(use_dora=True)
    plain, _ = plain_layers(model.state_dict(), model)
    with quiet():
        wanted = copy.deepcopy(model).merge_and_unload().state_dict()
    for name in ("fc.weight", "conv.weight", "words.weight"):
        torch.testing.assert_close(plain[f"base_model.model.{name}"], wanted[name], msg=name)


def test_adapters_without_their_base_are_refused(tmp_path: Path) -> None:
    with quiet():
        adapted().save_pretrained(str(tmp_path))
    with pytest.raises(CheckpointError, match="adapters without the weights that they change"):
        read_suspect(tmp_path)


def test_factors_that_do_not_fit_are_damaged(tmp_path: Path) -> None:
    state = {
        "a.base_layer.weight": torch.ones(4, 4),
        "a.lora_A.x.weight": torch.ones(2, 4),
        "a.lora_B.x.weight": torch.ones(2**15, 2),
    }
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="damaged: a: factors of shapes"):
        read_suspect(tmp_path / "w.pt")


# --- live models and what is in memory -----------------------------------------------------------


def test_a_live_model_with_masks_is_read_as_it_computes() -> None:
    model, claim = marked()
    pruned = copy.deepcopy(model)
    for layer in pruned.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            prune.l1_unstructured(layer, "weight", 0.2)
    for suspect in (pruned, pruned.state_dict()):
        verdict = pp.verify(suspect, OWNER, claim)
        assert verdict.accepted and verdict.total == claim.marking.layout.bits
    # The digest is that of what is kept.
    assert pp.verify(model, OWNER, claim).same_weights
    assert not pp.verify(pruned, OWNER, claim).same_weights
    assert open_suspect(pruned.state_dict(), model).whole


def test_four_bits_that_do_not_fit_are_damaged(tmp_path: Path) -> None:
    about = {"blocksize": 64, "shape": [2**20, 2**10], "quant_type": "nf4"}
    state = {
        "w.weight": torch.zeros(8, 1, dtype=torch.uint8),
        "w.weight.absmax": torch.ones(1),
        "w.weight.quant_map": torch.ones(16),
        "w.weight.quant_state.bitsandbytes__nf4": torch.tensor(list(json.dumps(about).encode())),
    }
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"16 bytes|8 bytes for"):
        read_suspect(tmp_path / "w.pt")
