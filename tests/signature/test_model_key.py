"""From a layout to its digest, key, bits and vectors: known answers, and fair coins."""

from __future__ import annotations

import pickle
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, chisquare
from torch import Tensor

import tests.support.independent_passport as independent
from passportize.errors import InvalidArgument, PassportError
from passportize.passport.derivation import derive_key
from passportize.passport.images import PassportImages
from passportize.passport.message_code import read_message
from passportize.passport.passport import Passport
from passportize.signature.layout import Layout, anchor_of
from passportize.signature.model_key import ModelKey
from passportize.signature.site import AnchorPart
from passportize.signature.vectors import RawVectors, SignVectors
from tests.support import ROOT
from tests.support.layouts import bound, layout_of, plain_layout

SECRET = bytes(range(32))
PASSPORT = Passport.generate(
    "Acme Vision", contact="legal@acme.example", date="2026-11-23", secret=SECRET
)
SHAPES = {"layer1.0.conv1.weight": (320, 3, 3, 3), "proj.weight": (64, 300), "stem.weight": (4, 10)}
LAYOUT = layout_of(
    [
        bound(
            "layer1.0.bn1",
            AnchorPart("layer1.0.conv1.weight", 320),
            AnchorPart("proj.weight", 64),
        ),
        bound("stem.bn", AnchorPart("stem.weight", 4)),
    ],
    SHAPES,
    raw=["stem.bn"],
)


def key_of(passport: Passport, layout: Layout) -> bytes:
    return derive_key(passport.reading_key, "layout", layout.digest())


def packed(bits: Tensor) -> str:
    """Hexadecimal digits of the first 128 bits, the lowest of each byte first."""
    first = bits.flatten()[:128].to(torch.int64).reshape(-1, 8)
    return bytes((first << torch.arange(8)).sum(1).tolist()).hex()


def records(layout: Layout) -> list[dict[str, object]]:
    """What the digest is made of, for the independent implementation."""
    return [
        {
            "name": site.name,
            "channels": site.channels,
            "response": response,
            "parts": [part.to_dict() for part in anchor_of(site).parts],
            "shapes": [list(shape) for shape in shapes],
        }
        for site, response, shapes in zip(
            layout.sites, layout.responses, layout.shapes, strict=True
        )
    ]


KNOWN = {
    "layout digest": "4ce700d54c9b6aadb8405b36f256d64d15df00036ca68eb3cad5e9cdbd5e1171",
    "model key": "e26ffd8355985276da3f22c4c9681ecd5bd0b0db3f6b074ce8b11d23ae7d58fe",
    "signature": "c9000894916e682567043578133746bd",
    "conv1 s": "84281d7dcd284abc6b9876ccd0577097",
    "conv1 t": "4b994ccd7c19cdf252b29f6817b3c306",
    "conv1 r": "4a1e45ab12f92a986bc5557a8a16d65d",
    "proj s": "7b383e81bfc61785ce35e6163c595d0f",
    "proj t": "1c49fad844cae06001d82d44987a5b7b",
    "proj r": "96e4d4e080b1fd7d769ed3482d4e5a53",
    "stream": "6fade279d65f3f4ade94bf031a62a618",
}


def test_known_answers() -> None:
    key = ModelKey(PASSPORT, LAYOUT)
    (conv, proj), (stem,) = key.sides(0), key.sides(1)
    assert isinstance(conv, SignVectors) and isinstance(proj, SignVectors)
    assert isinstance(stem, RawVectors)
    found = {
        "layout digest": LAYOUT.digest(),
        "model key": key_of(PASSPORT, LAYOUT).hex(),
        "signature": packed(key.bits()),
        "stream": key.stream("x", 16).hex(),
    }
    for name, side in (("conv1", conv), ("proj", proj)):
        for plane, letter in enumerate("str"):
            found[f"{name} {letter}"] = packed(side.codes >> plane & 1)
    assert found == KNOWN
    assert (conv.offset, proj.offset) == (0, 25)
    assert (stem.values[:2, 1].double() * 2**28).tolist() == [-12768277, 15677987]


def test_known_answers_stand_in_the_format_description() -> None:
    text = (ROOT / "docs" / "passport_format.md").read_text()
    for value in KNOWN.values():
        assert value in text
    assert "-12768277, 15677987" in text


@settings(max_examples=25, deadline=None)
@given(
    secret=st.binary(min_size=32, max_size=32),
    owner=st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=20),
    names=st.lists(st.text(st.characters(codec="utf-8"), max_size=9), min_size=3, max_size=3),
    channels=st.integers(1, 40),
    lengths=st.tuples(*[st.integers(1, 300)] * 3),
)
def test_independent_implementation_agrees(secret, owner, names, channels, lengths) -> None:
    passport = Passport.generate(owner, date="2026-11-23", secret=secret)
    weights = [f"{index}{name}" for index, name in enumerate(names)]
    layout = layout_of(
        [
            bound("a" + names[0], *(AnchorPart(weight, channels) for weight in weights[:2])),
            bound("b" + names[1], AnchorPart(weights[2], 3)),
        ],
        {name: (channels + 3, n) for name, n in zip(weights, lengths, strict=True)},
        raw=["b" + names[1]],
    )
    message = (
        independent.payload(owner, "", "2026-11-23")
        if owner == passport.owner
        else (passport.message)
    )
    reading = independent.reading_key(secret, message)
    expected = independent.model_key(reading, independent.layout_digest(records(layout)))
    assert key_of(passport, layout) == expected
    key = ModelKey(passport, layout)
    assert key.bits().tolist() == independent.signature(expected, message, layout.bits)
    for part, side in enumerate(key.sides(0)):
        offset, rows = independent.sign_vectors(
            expected, "a" + names[0], part, channels, lengths[part]
        )
        assert side.offset == offset
        assert side.signs(torch.int8).movedim(0, 1).tolist() == [list(row) for row in rows]
    (raw,) = key.sides(1)
    for index, side in enumerate(("gamma", "beta")):
        uniform = independent.uniform(expected, "b" + names[1], side, 0, lengths[2])
        assert raw.values[:, index].tolist() == [number / 16 for number in uniform]
    assert key.stream(owner, 9) == independent.output(expected, 9, "stream", owner)


def test_secrets_are_the_bits_and_vectors_of_every_site() -> None:
    key = ModelKey(PASSPORT, LAYOUT)
    held = key.secrets()
    signs = torch.cat([secret.bits for secret in held])
    assert signs.dtype == torch.float32
    assert torch.equal(signs, key.bits().float() * 2 - 1)
    assert [len(secret.bits) for secret in held] == [384, 4]
    for index, secret in enumerate(held):
        for ours, expected in zip(secret.sides, key.sides(index), strict=True):
            assert torch.equal(ours[0], expected[0])


def test_a_layout_without_sites_has_no_bits() -> None:
    key = ModelKey(PASSPORT, Layout.of([], [], {}))
    assert key.bits().tolist() == [] and key.secrets() == []


def test_the_message_reads_back_through_the_key_and_without_passport() -> None:
    key = ModelKey(PASSPORT, LAYOUT)
    bits, confidence = key.bits(), torch.ones(LAYOUT.bits)
    bits[:8] ^= 1
    confidence[:8] = 0
    assert key.read_message(bits, confidence) == PASSPORT.owner_message
    assert key.read_message(key.bits()) == PASSPORT.owner_message
    # Whoever is handed the reading key alone.
    assert read_message(key_of(PASSPORT, LAYOUT), key.bits()) == PASSPORT.owner_message
    other = plain_layout(SHAPES)
    assert ModelKey(PASSPORT, other).read_message(bits) is None
    stranger = Passport.generate("Mallory", date="2026-11-28", secret=bytes(32))
    assert ModelKey(stranger, LAYOUT).read_message(bits) is None


def test_nothing_shows_the_key() -> None:
    key = ModelKey(PASSPORT, LAYOUT)
    for text in (repr(key), str(key), f"{key}"):
        assert text == "ModelKey(388 bits, key hidden)"
    assert not hasattr(key, "__dict__")
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(PassportError, match="never pickled"):
            pickle.dumps(key, protocol)


# --- pictures ------------------------------------------------------------------------------------


def pictured(patches: dict[str, Tensor]) -> Passport:
    pictures = PassportImages(torch.ones(1, 2, 2), torch.ones(1, 2, 2), patches)
    return Passport(SECRET, PASSPORT.owner_message, pictures)


def test_pictures_are_the_vectors_where_a_layer_has_seen_them() -> None:
    patch = torch.arange(20.0).reshape(1, 10, 2)
    layout = layout_of(LAYOUT.sites, SHAPES, raw=[site.name for site in LAYOUT.sites])
    key = ModelKey(pictured({"stem.weight": patch}), layout)
    assert torch.equal(key.sides(1)[0].values, patch[0])
    random = ModelKey(pictured({}), layout).sides(0)
    assert [tuple(side.values.shape) for side in random] == [(27, 2), (300, 2)]
    # The normalised response has vectors of its own.
    assert isinstance(ModelKey(pictured({"stem.weight": patch}), LAYOUT).sides(0)[0], SignVectors)


def test_pictures_of_another_model_are_refused_by_name() -> None:
    patch = torch.arange(24.0).reshape(1, 12, 2)
    with pytest.raises(InvalidArgument, match=r"12 entries for stem\.weight, the model has 10"):
        ModelKey(pictured({"stem.weight": patch}), LAYOUT).sides(1)


# --- bits under the null hypothesis --------------------------------------------------------------


def of(total: int) -> Layout:
    return plain_layout({"w": (total, 3)})


def test_bits_are_fair_coins_whatever_the_message() -> None:
    """1,500 keys against one fixed reading: matches are Binomial(n, 1/2), whoever the owner."""
    total, keys = 400, 1500
    torch.manual_seed(0)
    reading = torch.randint(0, 2, (total,))
    layout = of(total)
    matches, per_position = [], torch.zeros(total)
    for index in range(keys):
        secret = index.to_bytes(32, "big")
        passport = Passport.generate("A" * (1 + index % 40), date="2026-01-01", secret=secret)
        agree = ModelKey(passport, layout).bits() == reading
        matches.append(int(agree.sum()))
        per_position += agree
    assert binomtest(sum(matches), total * keys).pvalue > 1e-4
    edges = [0, 185, 190, 195, 200, 205, 210, 215, total + 1]
    counts = [sum(low <= m < high for m in matches) for low, high in pairwise(edges)]
    probabilities = [
        binom.cdf(high - 1, total, 0.5) - binom.cdf(low - 1, total, 0.5)
        for low, high in pairwise(edges)
    ]
    assert chisquare(counts, [p * keys for p in probabilities]).pvalue > 1e-4
    # No position is biased: 400 z-scores stay within what 400 fair coins give.
    assert ((per_position - keys / 2).abs() / (keys / 4) ** 0.5).max() < 4.5


def test_no_message_can_be_fitted_to_weights_that_exist_already() -> None:
    """With one mask for all messages a forger would choose each position's bit freely.

    Here another message is another key: the best of 300 owners is no better than luck.
    """
    torch.manual_seed(1)
    reading, layout = torch.randint(0, 2, (256,)), of(256)
    matches = [
        int((ModelKey(passport, layout).bits() == reading).sum())
        for passport in (
            Passport.generate(f"Mallory {i}", date="2026-01-01", secret=SECRET) for i in range(300)
        )
    ]
    assert max(matches) < 128 + 5 * 8
    assert abs(sum(matches) / 300 - 128) < 4 * 8 / 300**0.5


def test_neither_pictures_nor_layouts_can_be_chosen_for_the_bits() -> None:
    gamma, beta = torch.zeros(3, 4, 4, dtype=torch.uint8), torch.zeros(3, 4, 4)
    passports = [PASSPORT, PASSPORT.with_images(gamma, beta), PASSPORT.with_images(gamma + 1, beta)]
    layouts = [of(800), plain_layout({"w": (800, 4)}), plain_layout({"v": (800, 3)})]
    drawn = [ModelKey(passport, layouts[0]).bits() for passport in passports]
    drawn += [ModelKey(PASSPORT, layout).bits() for layout in layouts[1:]]
    for index, one in enumerate(drawn):
        for other in drawn[:index]:
            assert 340 < int((one != other).sum()) < 460
