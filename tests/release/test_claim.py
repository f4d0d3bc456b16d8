from __future__ import annotations

import base64
import copy
import json
import warnings
from dataclasses import replace

import pytest
import timm
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save, save_file
from torch import nn

import passportize as pp
from passportize.errors import (
    ClaimError,
    ClaimFileError,
    InvalidArgument,
    NotPassportized,
    WrappedModel,
    WrongPassport,
)
from passportize.release.claim import claim_of
from passportize.release.claim_file import write_claim
from passportize.signature.layout import Layout
from passportize.signature.model_key import ModelKey
from passportize.signature.response import normalised_responses
from passportize.signature.site import AnchorPart
from passportize.surgery.surgery import UnsavedBranchWarning
from tests.support.small_protected import PASSPORT, TinyNet, images, live, protected

FIRST = "0.bottleneck.0.weight"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    file = tmp_path_factory.mktemp("claims") / "acme.claim.safetensors"
    pp.save_claim(copy.deepcopy(live("keyed")), file)
    return file


@pytest.mark.parametrize("preset", ["keyed", "paper", "signature"])
def test_round_trip(tmp_path, preset):
    model = copy.deepcopy(live(preset))
    saved = pp.save_claim(model, tmp_path / "c")
    loaded = pp.load_claim(tmp_path / "c")
    assert loaded.digest() == saved.digest()
    assert loaded.sites == saved.sites
    assert loaded.marking == saved.marking
    assert loaded.layout == saved.layout
    assert loaded.layout.bits == loaded.bits == 192
    assert PASSPORT.check_commitment(loaded.commitment)
    assert set(loaded.tensors) == set(saved.tensors)
    expected = {"keyed": 0, "paper": 6, "signature": 0}
    assert len(loaded.tensors) == expected[preset]
    assert "192 bits" in str(loaded)


def test_architecture_and_overrides(tmp_path):
    model = timm.create_model("resnet10t", num_classes=3)
    pp.passportize(model, PASSPORT, overrides={"layer4*": {"margin": 1.5}})
    pp.save_claim(model, tmp_path / "c")
    claim = pp.load_claim(tmp_path / "c")
    assert claim.architecture == "resnet10t"
    margins = {
        site.name: c.margin for site, c in zip(claim.sites, claim.marking.configs, strict=True)
    }
    assert margins["layer4.0.bn1"] == 1.5
    assert margins["bn1"] == claim.config.margin


def test_saving_ends_the_warning(tmp_path):
    model = copy.deepcopy(live("keyed"))
    with pytest.warns(UnsavedBranchWarning, match="save_claim"):
        pp.unpassportize(copy.deepcopy(model))
    pp.save_claim(model, tmp_path / "c")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pp.unpassportize(model)


def test_no_secret_in_the_file(path):
    data = path.read_bytes()
    claim = pp.load_claim(path)
    key = ModelKey(PASSPORT, claim.layout)
    secrets = [bytes(range(32)), PASSPORT.reading_key, key._key]
    secrets += [text for secret in list(secrets) for text in (secret.hex().encode(),)]
    secrets += [base64.b64encode(secret)[:40] for secret in secrets[:3]]
    bits = key.bits()
    for total in (bits, 1 - bits, 2 * bits - 1):
        for dtype in (torch.int8, torch.float32, torch.float64, torch.int64):
            secrets.append(total[:64].to(dtype).numpy().tobytes())
        secrets.append("".join(str(int(bit)) for bit in total[:64]).encode())
    weights = 1 << torch.arange(8)
    secrets.append(bytes((bits.view(-1, 8).long() * weights).sum(1).tolist())[:8])
    for index in range(len(claim.layout.sites)):
        vectors = key.sides(index)[0]
        secrets.append(vectors.codes[0, :9].numpy().tobytes())
        for vector in vectors.signs(torch.float32)[:, 0]:
            secrets += [vector[:9].to(d).numpy().tobytes() for d in (torch.int8, torch.float32)]
    for secret in secrets:
        assert len(secret) >= 8 and secret not in data
    assert b"Acme" not in data


def test_an_existing_file_is_kept(path):
    before = path.read_bytes()
    with pytest.raises(ClaimFileError, match="exists already"):
        pp.save_claim(live("keyed"), path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("model", "error"),
    [
        (lambda: TinyNet(), NotPassportized),
        (lambda: nn.DataParallel(live("keyed")), WrappedModel),
        (lambda: "model", InvalidArgument),
    ],
)
def test_what_cannot_be_claimed(tmp_path, model, error):
    with pytest.raises(error):
        pp.save_claim(model(), tmp_path / "c")
    assert not list(tmp_path.iterdir())


def test_a_branch_that_diverged_is_not_saved(tmp_path):
    model = copy.deepcopy(live("keyed"))
    model.bn2.passport.running_mean[3] = float("nan")
    with pytest.raises(ClaimError, match="bn2"):
        pp.save_claim(model, tmp_path / "c")


def test_digest_binds_everything():
    claim = claim_of(live("paper"))
    name = "0.bottleneck.0.weight"
    first = {**claim.tensors, name: claim.tensors[name] + 1e-6}
    marking = claim.marking
    others = [
        replace(claim, commitment="0" * 64),
        replace(claim, weights="0" * 64),
        replace(
            claim,
            marking=replace(marking, sites=marking.sites[:-1], configs=marking.configs[:-1]),
        ),
        replace(claim, marking=replace(marking, config=pp.PassportConfig.keyed(margin=9.0))),
        replace(claim, marking=replace(marking, shapes={**marking.shapes, "x": (1, 1)})),
        replace(claim, tensors=first),
        replace(claim, model="Other"),
    ]
    assert len({claim.digest(), *(other.digest() for other in others)}) == len(others) + 1


@pytest.mark.parametrize("preset", ["keyed", "signature"])
def test_a_claim_says_nothing_of_the_bits(preset):
    """But for two digests it is the same for every key and all weights of one model."""

    def made(seed):
        torch.manual_seed(seed)
        passport = pp.Passport.generate("Acme", date="2026-11-28", secret=seed.to_bytes(32, "big"))
        model = pp.passportize(TinyNet(), passport, config=pp.PassportConfig.preset(preset))
        pp.embed_signature(model)
        return claim_of(model)

    claims = [made(seed) for seed in (1, 2)]
    assert not any(claim.tensors for claim in claims)
    first, second = (json.loads(claim.header()) for claim in claims)
    assert {key for key in first if first[key] != second[key]} == {"commitment", "weights"}
    assert first.keys() == second.keys()


def test_unlock_takes_the_right_passport_only(tmp_path):
    torch.save(live("keyed"), tmp_path / "model.pt")
    model = torch.load(tmp_path / "model.pt", weights_only=False)
    with pytest.raises(WrongPassport, match="another passport"):
        pp.unlock(model, pp.Passport.generate("Eve"))
    with pytest.raises(InvalidArgument):
        pp.unlock(model, "acme.passport")
    before = pp.signature_accuracy(live("keyed"))
    assert before > 0.95
    assert pp.signature_accuracy(pp.unlock(model, PASSPORT)) == before
    assert claim_of(model).digest() == claim_of(live("keyed")).digest()


# --- damaged and hostile files -------------------------------------------------------------------


def refused(path, match=None):
    with pytest.raises(ClaimFileError, match=match) as caught:
        pp.load_claim(path)
    assert str(path) in str(caught.value)


def test_other_files(tmp_path):
    refused(tmp_path / "nothing", "check the path")
    refused(tmp_path, "check the path")
    (tmp_path / "empty").write_bytes(b"")
    refused(tmp_path / "empty", "no claim")
    save_file({"a": torch.ones(2)}, tmp_path / "weights")
    refused(tmp_path / "weights", "no claim")
    save_file({"a": torch.ones(2)}, tmp_path / "pt", {"format": "pt", "version": "1"})
    refused(tmp_path / "pt", "save_claim")
    torch.save({"a": 1}, tmp_path / "torch")
    refused(tmp_path / "torch", "no claim")


SETTINGS = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@SETTINGS
@given(share=st.floats(0, 1, exclude_max=True))
def test_truncated(tmp_path, path, share):
    data = path.read_bytes()
    (tmp_path / "c").write_bytes(data[: int(share * len(data))])
    refused(tmp_path / "c")


@SETTINGS
@example(place=0.9999999999999999, change=45)  # a space behind the header becomes another one
@given(place=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
def test_one_byte_changed(tmp_path, path, place, change):
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= change
    (tmp_path / "c").write_bytes(bytes(data))
    refused(tmp_path / "c")


def rewritten(path, change, sign=True, **metadata):
    """A claim file with a changed header and, where it still has one, the right digest."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    fields = json.loads(data[8 : 8 + length])["__metadata__"]
    record = json.loads(fields["header"])
    change(record)
    fields["header"] = json.dumps(record, sort_keys=True, separators=(",", ":"))
    tensors = load(data)
    if sign:
        import hashlib

        from passportize.passport.derivation import encode_label
        from passportize.release.weights_digest import feed_tensor

        digest = hashlib.sha256(encode_label("passportize/claim/v1", 1, fields["header"]))
        for name in sorted(tensors):
            feed_tensor(digest, name, tensors[name])
        fields["digest"] = digest.hexdigest()
    return save(tensors, {**fields, **metadata})


def test_the_rewriter_itself(tmp_path, path):
    (tmp_path / "c").write_bytes(rewritten(path, lambda record: None))
    assert pp.load_claim(tmp_path / "c").digest() == pp.load_claim(path).digest()


def set_in(*keys, value):
    def change(record):
        for key in keys[:-1]:
            record = record[key]
        record[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        set_in("model", value=3),
        set_in("model", value="two\nlines"),
        set_in("commitment", value="xyz"),
        set_in("weights", value="0" * 63),
        set_in("config", "margin", value="big"),
        set_in("config", "margin", value=10**400),
        set_in("config", "formulation", value="other"),
        set_in("config", "surprise", value=1),
        set_in("surprise", value=1),
        set_in("sites", value={}),
        set_in("sites", value=[]),
        set_in("sites", 0, value=None),
        set_in("sites", 0, "role", value="skipped"),
        set_in("sites", 0, "channels", value=0),
        set_in("sites", 0, "channels", value=31),
        set_in("sites", 0, "channels", value=True),
        set_in("sites", 0, "name", value="bn2"),
        set_in("sites", 0, "anchor", value=None),
        set_in("sites", 0, "anchor", "parts", value=[]),
        set_in("sites", 0, "anchor", "parts", 0, "axis", value="sideways"),
        set_in("sites", 0, "anchor", "parts", 0, "start", value=-1),
        set_in("sites", 0, "anchor", "parts", 0, "start", value=1),
        set_in("sites", 0, "anchor", "parts", 0, "groups", value=0),
        set_in("sites", 0, "config", value=7),
        set_in("anchors", value={}),
        set_in("anchors", "conv1.weight", value=[32]),
        set_in("anchors", "conv1.weight", value=[32, 1 << 39, 1 << 39]),
        set_in("anchors", "conv1.weight", value=[32, 1, 3, -3]),
        set_in("anchors", "more.weight", value=[32, 1, 3, 3]),
        set_in("structure", value=[["conv1.weight", [32, 1, 3, 3]]]),
        lambda record: record.pop("weights"),
    ],
)
def test_hostile_header(tmp_path, path, change):
    (tmp_path / "c").write_bytes(rewritten(path, change))
    refused(tmp_path / "c", "damaged or was changed")


def test_changed_header_without_the_digest(tmp_path, path):
    (tmp_path / "c").write_bytes(rewritten(path, set_in("model", value="Other"), sign=False))
    refused(tmp_path / "c", "digest")


def test_newer_version(tmp_path, path):
    (tmp_path / "c").write_bytes(rewritten(path, lambda record: None, version="2"))
    refused(tmp_path / "c", "update passportize")


@pytest.mark.parametrize(
    "tensors",
    [
        lambda t: {**t, "9.bottleneck.0.weight": torch.ones(8, 32)},
        lambda t: {name: value for name, value in t.items() if name != FIRST} | {"x": t[FIRST]},
        lambda t: {**t, FIRST: torch.ones(8, 31)},
        lambda t: {**t, FIRST: torch.full((8, 32), float("nan"))},
        lambda t: {**t, FIRST: torch.ones(8, 32, dtype=torch.int64)},
        # Running statistics are measured by whoever judges; a claim that brings some is none.
        lambda t: {**t, "0.offset": torch.zeros(32, dtype=torch.float64)},
    ],
)
def test_hostile_tensors(tmp_path, tensors):
    claim = protected("paper").claim
    write_claim(replace(claim, tensors=tensors(dict(claim.tensors))), tmp_path / "c")
    refused(tmp_path / "c", "damaged or was changed")


def test_statistics_in_a_claim_of_a_keyed_model_are_refused(tmp_path):
    claim = protected("keyed").claim
    brought = {"0.offset": torch.zeros(32, dtype=torch.float64)}
    write_claim(replace(claim, tensors=brought), tmp_path / "c")
    refused(tmp_path / "c", "damaged or was changed")


# --- a claim cannot be written to suit a suspect -------------------------------------------------


def test_rows_chosen_to_fit_do_not_fit_any_more():
    """Row by row, a forger picks what fits his bits; the new layout has other bits."""
    eve = pp.Passport.generate("Eve", date="2026-11-28", secret=b"e" * 32)
    released = protected("keyed")
    site = released.claim.sites[2]
    weight = released.plain.conv3.weight.detach()
    config = (pp.PassportConfig.keyed(),)
    shapes = {"conv3.weight": tuple(weight.shape)}
    parts = tuple(AnchorPart("conv3.weight", 1, start=row) for row in range(128))

    def fits(parts):
        anchor = replace(site.anchor, parts=parts)
        layout = Layout.of([replace(site, anchor=anchor)], config, shapes)
        key = ModelKey(eve, layout)
        sides, bits, chosen = key.sides(0), key.bits(), []
        for index, part in enumerate(parts):
            row = weight[part.start].reshape(1, -1)
            answer = normalised_responses([row], [sides[index]]).gamma
            chosen.append(bool(answer >= 0) == bool(bits[index]))
        return chosen

    for _ in range(4):
        matched = fits(parts)
        assert 38 < sum(matched) < 90
        # Keep the rows that fit, and try another for each that does not.
        parts = tuple(
            part if fit else replace(part, start=(part.start + 37) % 128)
            for part, fit in zip(parts, matched, strict=True)
        )


def test_claim_of_a_bf16_model(tmp_path):
    model = copy.deepcopy(live("keyed")).bfloat16()
    claim = pp.save_claim(model, tmp_path / "c")
    assert pp.load_claim(tmp_path / "c").digest() == claim.digest()
    with torch.no_grad(), pp.branch(model, "private"):
        assert torch.isfinite(model(images("test")[0].bfloat16())).all()
