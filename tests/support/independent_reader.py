"""Marks read from the bytes of a claim and of weights, from docs/claim_format.md alone.

In plain Python: nothing of passportize, torch, numpy or safetensors is used.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import struct

import tests.support.independent_passport as passports

TYPES = {"F16": ("e", 2), "F32": ("f", 4), "F64": ("d", 8), "BF16": ("H", 2)}
NAMES = {"F16": "float16", "F32": "float32", "F64": "float64", "BF16": "bfloat16", "I64": "int64"}


def safetensors(data):
    """Metadata, and for every tensor its type, shape and bytes."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    body = data[8 + size :]
    metadata = header.pop("__metadata__", {})
    return metadata, {
        name: (entry["dtype"], tuple(entry["shape"]), body[slice(*entry["data_offsets"])])
        for name, entry in header.items()
    }


def floats(kind, raw):
    letter, width = TYPES[kind]
    values = struct.unpack(f"<{len(raw) // width}{letter}", raw)
    if kind != "BF16":
        return list(values)
    return [struct.unpack("<f", struct.pack("<I", value << 16))[0] for value in values]


def hashed(tensors):
    """The bytes that tensors take in a digest."""
    return b"".join(
        passports.label(name, NAMES[kind], len(shape), *shape) + raw
        for name, (kind, shape, raw) in sorted(tensors.items())
    )


def claim_digest(header, tensors):
    front = passports.label("passportize/claim/v1", 1, header)
    return hashlib.sha256(front + hashed(tensors)).hexdigest()


def weights_digest(tensors):
    front = passports.label("passportize/weights/v1")
    return hashlib.sha256(front + hashed(tensors)).hexdigest()


def layout(header):
    """The records that the digest of the layout is made of."""
    return [
        {
            "name": site["name"],
            "channels": site["channels"],
            "response": "raw" if formulation(header, site) == "paper" else "normalised",
            "parts": site["anchor"]["parts"],
            "shapes": [header["anchors"][part["weight"]] for part in site["anchor"]["parts"]],
        }
        for site in header["sites"]
        if site["role"] == "bound"
    ]


def inputs_of(header):
    """Digest of the owner's inputs, in the model's config or in a site's own; empty without."""
    configs = [header["config"], *(site["config"] or {} for site in header["sites"])]
    return max(config.get("inputs", "") for config in configs)


def formulation(header, site):
    return (site["config"] or header["config"])["formulation"]


def rows(values, shape, part):
    """The rows of a weight that answer for the channels of a part, as lists of entries."""
    if part.get("centred"):
        kernels = slices(values, math.prod(shape[1:]))
        means = [total(kernel) / len(kernel) for kernel in kernels]
        values = [x - mean for kernel, mean in zip(kernels, means, strict=True) for x in kernel]
    kernel_shape = part.get("expert_shape") or shape
    experts = [
        every_row(expert, kernel_shape, part) for expert in slices(values, math.prod(kernel_shape))
    ]
    found = [
        [x for every in experts for row in chosen(every, part, channel) for x in row]
        for channel in range(part["channels"])
    ]
    if part.get("less_mean_row"):
        means = [total(column) / len(found) for column in zip(*found, strict=True)]
        found = [[x - mean for x, mean in zip(row, means, strict=True)] for row in found]
    return found


def slices(values, size):
    return [values[start : start + size] for start in range(0, len(values), size)]


def chosen(every, part, channel):
    first = part["start"] + channel
    return [every[first + j * part["channels"]] for j in range(part["repeats"])]


def every_row(values, shape, part):
    kernel, groups = math.prod(shape[2:]), part["groups"]
    table = slices(slices(values, kernel), shape[1])
    if (part["axis"] == "output") != part["transposed"]:
        return [list(itertools.chain(*line)) for line in table]
    height = shape[0] // groups
    return [
        [x for line in table[group * height : (group + 1) * height] for x in line[column]]
        for group in range(groups)
        for column in range(shape[1])
    ]


def read(claim, weights, secret, message):
    """Bits as read and bits of the key, of all sites whose weights are there under their names.

    Args:
        claim: Bytes of a claim file.
        weights: Bytes of a safetensors file.
        secret: Of the passport.
        message: Its payload.
    """
    metadata, own = safetensors(claim)
    _, tensors = safetensors(weights)
    assert metadata["digest"] == claim_digest(metadata["header"], own)
    header = json.loads(metadata["header"])
    assert header["commitment"] == passports.commitment(secret, message)
    sites = layout(header)
    reading = passports.reading_key(secret, message)
    key = passports.model_key(reading, passports.layout_digest(sites, inputs_of(header)))
    expected = passports.signature(key, message, sum(bits_of(site) for site in sites))
    found, wanted = [], []
    for site in sites:
        bits = bits_of(site)
        own_bits, expected = expected[:bits], expected[bits:]
        shapes = [tuple(shape) for shape in site["shapes"]]
        names = [part["weight"] for part in site["parts"]]
        if all(tensors.get(n, (0, 0))[1] == shape for n, shape in zip(names, shapes, strict=True)):
            for number, (part, shape) in enumerate(zip(site["parts"], shapes, strict=True)):
                kind, _, raw = tensors[part["weight"]]
                found += answers(key, site, number, part, rows(floats(kind, raw), shape, part))
            wanted += own_bits
    return found, wanted


def bits_of(site):
    return sum(part.get("picked", part["channels"]) for part in site["parts"])


def answers(key, site, number, part, weight_rows):
    """The bits of one part."""
    entries = len(weight_rows[0])
    if site["response"] == "raw":
        vector = passports.uniform(key, site["name"], "gamma", number, entries)
        return [int(product(row, vector) >= 0) for row in weight_rows]
    if "picked" in part:
        place = (key, site["name"], number, part["channels"], part["picked"])
        weight_rows = [weight_rows[row] for row in passports.picked_rows(*place)]
    rows_read = len(weight_rows)
    offset, vectors = passports.sign_vectors(key, site["name"], number, rows_read, entries)
    bits = []
    for row, (s, t, _) in zip(weight_rows, vectors, strict=True):
        window = row[offset : offset + len(s)]
        sign = -1 if product(window, s) < 0 else 1
        finite = all(map(math.isfinite, window))
        bits.append(int(finite and sign * product(window, t) >= 0))
    return bits


def product(row, vector):
    return total([x * y for x, y in zip(row, vector, strict=True)])


def total(numbers):
    """Exact; no number where infinities cancel."""
    try:
        return math.fsum(numbers)
    except ValueError:
        return math.nan


def log2_tail(matched, total):
    """Of the binomial, in whole numbers."""
    ways = sum(math.comb(total, k) for k in range(matched, total + 1))
    # Fractions of huge numbers: only their leading bits count.
    spare = max(0, ways.bit_length() - 1000)
    return math.log2(ways >> spare) + spare - total
