"""docs/claim_format.md against the code: the claim is read again without passportize."""

from __future__ import annotations

import copy
import hashlib
import json
import math

import pytest
import torch

import passportize as pp
import tests.support.independent_passport as other
from passportize.signature.model_key import ModelKey
from tests.support.small_protected import PASSPORT, TinyNet, live

DTYPES = {"F64": ("float64", 8), "F32": ("float32", 4), "I64": ("int64", 8)}


def parse(path):
    """Metadata and tensors (dtype, shape, bytes) of a safetensors file."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    entries = json.loads(data[8 : 8 + length])
    metadata = entries.pop("__metadata__")
    body = data[8 + length :]
    tensors = {}
    for name, entry in entries.items():
        begin, end = entry["data_offsets"]
        dtype, size = DTYPES[entry["dtype"]]
        assert end - begin == size * math.prod(entry["shape"])
        tensors[name] = (dtype, entry["shape"], body[begin:end])
    return metadata, tensors


def hashed(start, tensors):
    digest = hashlib.sha256(start)
    for name in sorted(tensors):
        dtype, shape, content = tensors[name]
        digest.update(other.label(name, dtype, len(shape), *shape) + content)
    return digest.hexdigest()


@pytest.fixture(scope="module", params=["keyed", "paper"])
def case(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("claim") / "c.safetensors"
    model = copy.deepcopy(live(request.param))
    claim = pp.save_claim(model, path)
    return path, claim, pp.host_state_dict(model)


def test_digests(case):
    path, claim, weights = case
    metadata, tensors = parse(path)
    assert set(metadata) == {"format", "version", "header", "digest"}
    assert (metadata["format"], metadata["version"]) == ("passportize claim", "1")
    start = other.label("passportize/claim/v1", 1, metadata["header"])
    assert hashed(start, tensors) == metadata["digest"] == claim.digest()
    header = json.loads(metadata["header"])
    released = {
        name: (str(t.dtype).removeprefix("torch."), list(t.shape), t.numpy().tobytes())
        for name, t in weights.items()
    }
    assert hashed(other.label("passportize/weights/v1"), released) == header["weights"]
    assert set(header) == {
        "model", "architecture", "config", "sites", "anchors", "commitment", "weights"
    }  # fmt: skip


def test_layout_and_bits(case):
    path, claim, _ = case
    header = json.loads(parse(path)[0]["header"])
    layout = []
    for site in header["sites"]:
        if site["role"] == "bound":
            parts = site["anchor"]["parts"]
            config = site["config"] or header["config"]
            raw = config["formulation"] == "paper"
            layout.append(
                {
                    "name": site["name"],
                    "channels": site["channels"],
                    "response": "raw" if raw else "normalised",
                    "parts": parts,
                    "shapes": [header["anchors"][part["weight"]] for part in parts],
                }
            )
    text = json.dumps(["passportize/layout/v1", layout], sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert digest == claim.layout.digest()
    reading = other.reading_key(bytes(range(32)), other.payload("Acme", "", "2026-01-31"))
    key = other.hkdf(reading, "layout", digest)
    bits = other.signature(key, other.payload("Acme", "", "2026-01-31"), 192)
    assert bits == ModelKey(PASSPORT, claim.layout).bits().tolist()


KNOWN = {
    "keyed": (
        "96d6b843385a1215e3e5115cddbf08c79336edaccf2f63312edc6380471cf623",
        "ae07b0dc868871b9",
    ),
    "paper": (
        "e53709c2a5e2e7fa38867ad559b1aa1432a0ba9c3ed3a702b96a37c21df20674",
        "c8350e9330006e81",
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("preset", KNOWN)
def test_known_answers(preset, dtype):
    """Names and shapes alone decide: the same on every machine, version and type of weights."""
    model = TinyNet().to(dtype)
    pp.passportize(model, PASSPORT, config=getattr(pp.PassportConfig, preset)())
    layout = model.bn1.passport.switch.layout
    assert layout is not None
    bits = ModelKey(PASSPORT, layout).bits()[:64].view(-1, 8).tolist()
    packed = bytes(sum(bit << place for place, bit in enumerate(group)) for group in bits)
    assert (layout.digest(), packed.hex()) == KNOWN[preset]
