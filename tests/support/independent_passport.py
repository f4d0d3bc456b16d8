"""Passports and model keys again, from docs/passport_format.md alone: hashlib and hmac, no torch.

What they mark is read by :mod:`tests.support.independent_reader`.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import json

WINDOW = 256


def label(*parts):
    encoded = b""
    for part in parts:
        if isinstance(part, str):
            kind, payload = b"s", part.encode("utf-8")
        elif isinstance(part, int):
            kind, payload = b"i", part.to_bytes(8, "big")
        else:
            kind, payload = b"b", bytes(part)
        encoded += kind + len(payload).to_bytes(8, "big") + payload
    return encoded


def hkdf(key, *parts):
    extracted = hmac.new(b"passportize/passport/v1", key, hashlib.sha256).digest()
    return hmac.new(extracted, label(*parts) + b"\x01", hashlib.sha256).digest()


def payload(owner, contact, date):
    day = datetime.date.fromisoformat(date).toordinal()
    name = owner.encode("utf-8")
    return day.to_bytes(3, "big") + bytes([len(name)]) + name + contact.encode("utf-8")


def reading_key(secret, message, images=b""):
    return hkdf(secret, "reading key", message, images)


def output(key, length, *parts):
    return hashlib.shake_256(hkdf(key, *parts)).digest(length)


def unpack(raw, total):
    return [raw[j // 8] >> (j % 8) & 1 for j in range(total)]


def coins(key, total):
    return unpack(output(key, total // 8 + 1, "bits"), total)


def numbers(raw, width):
    """Whole numbers of so many bytes each, lowest first."""
    return [int.from_bytes(raw[j : j + width], "little") for j in range(0, len(raw), width)]


def layout_digest(sites, inputs=""):
    """``sites``: records with name, channels, response, parts and shapes."""
    whole = ["passportize/layout/v1", sites] + ([inputs] if inputs else [])
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def model_key(reading, digest):
    return hkdf(reading, "layout", digest)


def picked_rows(key, site, part, channels, picked):
    """Which rows of a part carry bits, where not all do."""
    words = numbers(output(key, 4 * channels, "rows", site, part), 4)
    ranked = sorted(range(channels), key=lambda row: (words[row], row))
    return sorted(ranked[channels - picked :])


def sign_vectors(key, site, part, channels, fan_in):
    """First entry, and for each row ``s``, ``t`` and ``r`` as lists of -1 and +1."""
    entries, offset = min(fan_in, WINDOW), 0
    if fan_in > WINDOW:
        drawn = int.from_bytes(output(key, 8, "window", site, part), "big")
        offset = drawn % (fan_in - WINDOW + 1)
    total = channels * entries
    gamma, beta = (
        unpack(output(key, total // 8 + 1, side, site, part), total) for side in ("gamma", "beta")
    )
    words = numbers(output(key, 4 * total, "mask", site, part), 4)
    rows = []
    for start in range(0, total, entries):
        own = slice(start, start + entries)
        ranked = sorted(range(entries), key=lambda j, start=start: (words[start + j], j))
        changed = set(ranked[entries - entries // 2 :])
        s = [1 - 2 * bit for bit in gamma[own]]
        t = [-sign if j in changed else sign for j, sign in enumerate(s)]
        rows.append((s, t, [1 - 2 * bit for bit in beta[own]]))
    return offset, rows


def uniform(key, site, side, part, count):
    ks = numbers(output(key, 3 * count, "uniform", site, side, part), 3)
    return [(2 * k + 1) / 2**24 - 1 for k in ks]


def frame(message):
    body = bytes([1, len(message)]) + message
    return body + hashlib.sha256(label("owner message", body)).digest()[:4]


def carried(key, size, total):
    blocks = total // size + 1
    offsets = numbers(output(key, 4 * blocks, "offsets"), 4)
    return [(j % size + offsets[j // size]) % size for j in range(total)]


def signature(key, message, total):
    bits = unpack(frame(message), 8 * len(frame(message)))
    places = carried(key, len(bits), total)
    return [coin ^ bits[place] for coin, place in zip(coins(key, total), places, strict=True)]


def read(key, bits, confidence):
    votes = [
        (1 - 2 * (bit ^ coin)) * weight
        for bit, coin, weight in zip(bits, coins(key, len(bits)), confidence, strict=True)
    ]
    ties = unpack(output(key, 261, "ties"), 2088)
    for size in range(88, min(2088, len(bits)) + 1, 8):
        sums = [0.0] * size
        for vote, place in zip(votes, carried(key, size, len(bits)), strict=True):
            sums[place] += vote
        hard = [sums[i] < 0 if sums[i] else bool(ties[i]) for i in range(size)]
        weak = sorted(range(size), key=lambda i: (abs(sums[i]), i))[:8]
        head = unpack(bytes([1, size // 8 - 6]), 16)
        if any(hard[i] != head[i] and i not in weak for i in range(16)):
            continue
        ways = [[i for b, i in enumerate(weak) if way >> b & 1] for way in range(256)]
        for turned in sorted(ways, key=lambda way: sum(abs(sums[i]) for i in way)):
            bits_ = [bit ^ (i in turned) for i, bit in enumerate(hard)]
            raw = bytes(sum(bits_[8 * i + b] << b for b in range(8)) for i in range(size // 8))
            if raw[1] == len(raw) - 6 and raw == frame(raw[2:-4]):
                return raw[2:-4]
    return None


def images_digest(*sides):
    """``sides``: (name, type, shape, content) of gamma and beta."""
    encoded = b"".join(
        label(name, kind, len(shape), *shape, content) for name, kind, shape, content in sides
    )
    return hashlib.sha256(label("passport images") + encoded).digest()


def commitment(secret, message, images=b""):
    salt = hkdf(secret, "commitment salt")
    parts = ("passportize/commitment/v1", salt, secret, message, images)
    return hashlib.sha256(label(*parts)).hexdigest()


def signing_seed(secret, message, images=b""):
    return hkdf(secret, "signing key", message, images)
