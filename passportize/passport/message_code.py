"""Laying the owner message over the signature bits, and reading it back from damaged ones.

The bits of the frame are repeated over all positions, each block turned by a keyed offset.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from passportize.errors import InvalidArgument
from passportize.passport.derivation import LabelledStream, bits_of
from passportize.passport.message import (
    FRAME_OVERHEAD,
    FRAME_VERSION,
    LONGEST_PAYLOAD,
    SHORTEST_PAYLOAD,
    OwnerMessage,
)

__all__ = ["OwnerMessage", "lay_over", "read_message"]

_WEAK = 8  # frame bits that the decoder may turn


def lay_over(message: OwnerMessage, total: int, keyed: LabelledStream) -> torch.Tensor:
    """The codeword: int8 ``[total]`` of 0 and 1.

    Positions are cut into blocks of ``F = message.frame_bits``. Position ``i`` of block ``k``
    carries bit ``(i + offset_k) mod F`` of the frame, with keyed offsets. So any run of ``n``
    positions, a whole layer say, holds each bit ``m`` to ``m + 2`` times for one and the same
    ``m > n / F - 2``: losing the run costs every bit alike. A longer codeword begins with the
    shorter one. With ``total < F`` part of the frame is missing.
    """
    places = _carried(total, message.frame_bits, _offsets(total, keyed))
    return bits_of(message.frame)[places]


def read_message(key: bytes, read_bits: Any, confidence: Any = None) -> OwnerMessage | None:
    """Read the owner message with a model's key alone: no owner, contact, date or length known.

    Decoding rule: every read bit is unmasked with the key's pseudo-random bits and votes +1 for
    frame bit 0 or -1 for frame bit 1, times its confidence. For each frame length that fits,
    shortest first, a frame bit is 1 where its votes add up to less than 0, 0 where to more, and a
    bit of the key where to 0; then all 256 ways to turn the eight frame bits with the smallest
    sums (the first of equals) are tried, least total sum turned first. The first frame whose
    version, length, checksum and text are all valid is the message. Where confidence is the
    log-likelihood ratio of a read bit, frames are thereby tried in the order of their likelihood;
    |response| is that up to scale, for Gaussian noise on the responses.

    Without a message (a key that is independent of the bits) every frame tried is uniformly
    distributed, because the votes for a frame bit are as likely to add up to ``S`` as to ``-S``.
    So each passes with probability below ``2**-48`` (version, length, checksum), and among 256
    frames for each of 251 lengths a false positive is rarer than ``2**-32``.

    Args:
        key: What :class:`passportize.signature.ModelKey` derives from a reading key and a layout.
        read_bits: Tensor or array ``[total]`` of 0 and 1, in the order of embedding.
        confidence: Tensor or array ``[total]`` of weights of at least 0, all 1 by default. 0
            stands for "not read", for a layer that the suspect lacks, say.

    Returns:
        The message, or None where no frame is valid.

    Raises:
        InvalidArgument: Wrong shapes or values.
    """
    votes = _votes(read_bits, confidence)
    keyed, total = LabelledStream(key), len(votes)
    votes = votes * (1 - 2 * keyed.bits("bits", total=total).to(torch.float64))
    offsets = _offsets(total, keyed)
    ties = keyed.bits("ties", total=8 * (FRAME_OVERHEAD + LONGEST_PAYLOAD)).to(torch.bool)
    for size in range(SHORTEST_PAYLOAD, LONGEST_PAYLOAD + 1):
        frame_bits = 8 * (FRAME_OVERHEAD + size)
        if frame_bits > total:
            break
        sums = torch.bincount(
            _carried(total, frame_bits, offsets), weights=votes, minlength=frame_bits
        )
        bits = torch.where(sums == 0, ties[:frame_bits], sums < 0)
        for frame in _likely_frames(bits, sums.abs(), bytes([FRAME_VERSION, size])):
            with contextlib.suppress(InvalidArgument):
                return OwnerMessage.from_frame(frame)
    return None


def _likely_frames(bits: torch.Tensor, weights: torch.Tensor, head: bytes) -> Iterator[bytes]:
    """Frames that begin with ``head``, most likely first, with up to eight weak bits turned."""
    expected = bits_of(head).to(torch.bool)
    wrong = (bits[: len(expected)] != expected).nonzero().flatten()
    if len(wrong) > _WEAK:
        return
    weights, weakest = weights.sort(stable=True)
    weights, weakest = weights[:_WEAK], weakest[:_WEAK]
    # All but a handful of the wrong lengths end here.
    if not bool(torch.isin(wrong, weakest).all()):
        return
    places = torch.arange(2**_WEAK, device="cpu")
    patterns = (places.unsqueeze(1) >> places[:_WEAK]) & 1
    frames = bits.repeat(2**_WEAK, 1)
    frames[:, weakest] ^= patterns.to(torch.bool)
    order = (patterns.to(weights.dtype) @ weights).argsort(stable=True)
    order = order[(frames[order, : len(expected)] == expected).all(1)]
    for frame in frames[order]:
        yield bytes(
            (frame.view(-1, 8).to(torch.int64) << torch.arange(8, device="cpu")).sum(1).tolist()
        )


def _offsets(total: int, keyed: LabelledStream) -> torch.Tensor:
    shortest = 8 * (FRAME_OVERHEAD + SHORTEST_PAYLOAD)
    return keyed.words("offsets", count=total // shortest + 1)


def _carried(total: int, frame_bits: int, offsets: torch.Tensor) -> torch.Tensor:
    """Index of the frame bit that each position carries, int64 ``[total]``."""
    position = torch.arange(total, device="cpu")
    block = position.div(frame_bits, rounding_mode="floor")
    return (position % frame_bits + offsets[block]) % frame_bits


def _votes(read_bits: Any, confidence: Any) -> torch.Tensor:
    bits = torch.as_tensor(read_bits, device="cpu").detach()
    if bits.dim() != 1 or len(bits) == 0:
        raise InvalidArgument(f"read_bits must be [total], got the shape {list(bits.shape)}")
    if not bool(((bits == 0) | (bits == 1)).all()):
        raise InvalidArgument("read_bits must hold 0 and 1 only")
    votes = 1 - 2 * bits.to(torch.float64)
    if confidence is None:
        return votes
    weights = torch.as_tensor(confidence, device="cpu").detach().to(torch.float64)
    if weights.shape != bits.shape:
        raise InvalidArgument(
            f"confidence has the shape {list(weights.shape)}, read_bits {list(bits.shape)}"
        )
    if not bool((torch.isfinite(weights) & (weights >= 0)).all()):
        raise InvalidArgument("confidence must be finite and at least 0")
    return votes * weights
