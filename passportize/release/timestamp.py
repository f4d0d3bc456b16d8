"""Timestamps by RFC 3161: an authority's word that certain data existed at a certain time.

The request is for the owner to send, with any tool; nothing here uses the network. A response is
checked against root certificates that are given, at the time that it names.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cryptography.x509 import Certificate, load_der_x509_certificate, load_pem_x509_certificates

from passportize.errors import InvalidArgument, MissingExtra, TimestampRefused
from passportize.utils.files import read_limited

if TYPE_CHECKING:
    from rfc3161_client import Accuracy, TimeStampResponse

__all__ = [
    "LARGEST_RESPONSE",
    "Timestamp",
    "check_imprint",
    "check_timestamp",
    "load_roots",
    "timestamp_request",
]

LARGEST_RESPONSE = 128 * 2**10
"""Bytes of a response: a token with its chain of certificates has about 6,000."""

_LARGEST_ROOTS = 4 * 2**20
_HASHES = {
    "2.16.840.1.101.3.4.2.1": "sha256",
    "2.16.840.1.101.3.4.2.2": "sha384",
    "2.16.840.1.101.3.4.2.3": "sha512",
}


@dataclass(frozen=True)
class Timestamp:
    """What a checked timestamp says.

    Attributes:
        time: UTC, whole seconds, rounded down.
        authority: Whose word it is: the subject of the certificate that signed (RFC 4514).
        accuracy: How far the time may be off either way, as the authority says; None if it does
            not say.
    """

    time: datetime
    authority: str
    accuracy: timedelta | None

    def is_before(self, other: Timestamp) -> bool:
        """Whether this time is earlier, whatever accuracy and rounding do to both."""
        slack = timedelta(seconds=1)
        slack += (self.accuracy or timedelta()) + (other.accuracy or timedelta())
        return other.time - self.time >= slack

    def to_dict(self) -> dict[str, Any]:
        """JSON-compatible form; the accuracy in seconds."""
        return {
            "time": self.time.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "authority": self.authority,
            "accuracy": None if self.accuracy is None else self.accuracy.total_seconds(),
        }

    def __str__(self) -> str:
        record = self.to_dict()
        seconds = record["accuracy"]
        within = "" if seconds is None else f" (give or take {seconds:g} s)"
        return f"{record['time']}{within}, on the word of {self.authority}"


def timestamp_request(data: bytes) -> bytes:
    """A request for a timestamp of data: SHA-256, with the authority's certificate, DER.

    It bears no nonce, so the same data give the same request. Nonces keep an old answer from being
    passed off as a new one; an old answer for these data would only be better.

    Raises:
        MissingExtra: ``rfc3161-client`` is not installed.
    """
    client = _client()
    builder = client.TimestampRequestBuilder(nonce=False, cert_req=True).data(data)
    request = builder.hash_algorithm(client.HashAlgorithm.SHA256).build()
    return cast(bytes, request.as_bytes())


def check_imprint(response: bytes, data: bytes) -> None:
    """Check that a response is granted, well-formed and for these data; not who gave it.

    Raises:
        TimestampRefused: It is not.
        MissingExtra: ``rfc3161-client`` is not installed.
    """
    _open(response, data)


def check_timestamp(response: bytes, data: bytes, roots: tuple[Certificate, ...]) -> Timestamp:
    """Check all of a response: data, signature, purpose and chain, at the time that it names.

    Certificates need not be valid today: a timestamp outlives the certificate that made it.

    Args:
        response: The RFC 3161 response, DER, with the authority's certificate in it.
        data: What was timestamped.
        roots: Certificates that are trusted, :func:`load_roots`.

    Raises:
        TimestampRefused: Refused by the authority, malformed, for other data, or not by an
            authority with a chain to ``roots`` that was valid at that time.
        MissingExtra: ``rfc3161-client`` is not installed.
    """
    client = _client()
    opened = _open(response, data)
    try:
        info = opened.tst_info
        time, accuracy = info.gen_time, _accuracy(cast("Accuracy | None", info.accuracy))
        signer = _signer(opened, roots)
        authority = _printable(signer.subject.rfc4514_string())
    except TimestampRefused:
        raise
    except Exception as error:
        raise _malformed(error) from None
    first, last = signer.not_valid_before_utc, signer.not_valid_after_utc
    if not first <= time <= last:
        raise TimestampRefused(
            f"the certificate of {authority} was not valid at the time of the timestamp, "
            f"{time:%Y-%m-%d}, but from {first:%Y-%m-%d} to {last:%Y-%m-%d}; the timestamp proves "
            "nothing"
        )
    try:
        client.VerifierBuilder(roots=list(roots)).build().verify_message(opened, data)
    except Exception as error:
        found = re.search("Verify error: *([a-z ]+)", str(error))
        reason = found[1] if found else "its signature does not hold"
        raise TimestampRefused(
            f"the timestamp says that it is by {authority}, and no given root certificate vouches "
            f"for that ({reason}); give the root certificate of that authority if you trust it"
        ) from None
    return Timestamp(time, authority, accuracy)


def load_roots(path: str | os.PathLike[str]) -> tuple[Certificate, ...]:
    """Read root certificates from a PEM file; whoever gives them trusts them.

    Raises:
        InvalidArgument: Missing, or not certificates in PEM.
    """
    data = read_limited(path, _LARGEST_ROOTS, error=InvalidArgument)
    try:
        return tuple(dict.fromkeys(load_pem_x509_certificates(data)))
    except ValueError:
        raise InvalidArgument(
            f"{Path(path)}: there are no certificates in PEM here; convert DER with openssl x509 "
            "-inform der -in FILE"
        ) from None


def _client() -> Any:
    try:
        import rfc3161_client
    except ImportError:
        raise MissingExtra(
            "timestamps are read with rfc3161-client; run pip install 'passportize[timestamp]'"
        ) from None
    return rfc3161_client


def _open(response: bytes, data: bytes) -> TimeStampResponse:
    client = _client()
    if len(response) > LARGEST_RESPONSE:
        raise TimestampRefused(
            f"the timestamp has {len(response):,} bytes, more than {LARGEST_RESPONSE:,}; give the "
            "response of the authority as it came"
        )
    try:
        opened: TimeStampResponse = client.decode_timestamp_response(response)
        status, words = opened.status, " ".join(opened.status_string)
        if status == client.PKIStatus.GRANTED:
            imprint = opened.tst_info.message_imprint
            name = _HASHES.get(imprint.hash_algorithm.dotted_string)
            found = imprint.message
    except Exception as error:
        raise _malformed(error) from None
    if status != client.PKIStatus.GRANTED:
        reason = _printable(words)[:200] or "it gave no reason"
        raise TimestampRefused(
            f"the authority granted no timestamp (status {status}: {reason}); ask again"
        )
    if name is None:
        raise TimestampRefused("the timestamp hashes by another rule than SHA-256, -384 or -512")
    if not hmac.compare_digest(found, hashlib.new(name, data).digest()):
        raise TimestampRefused(
            "the timestamp is for other data than this release commitment; give the response to "
            "the request that was made from it"
        )
    return opened


def _signer(opened: TimeStampResponse, roots: tuple[Certificate, ...]) -> Certificate:
    """The certificate of whoever signed, of which there must be no second by that name."""
    signed = opened.signed_data
    (signer,) = signed.signer_infos
    embedded = {load_der_x509_certificate(raw) for raw in signed.certificates}
    if not embedded:
        raise TimestampRefused(
            "the timestamp comes without the certificate of the authority; ask again with a "
            "request that wants it"
        )
    fitting = [
        one
        for one in {*embedded, *roots}
        if (one.issuer, one.serial_number) == (signer.issuer, signer.serial_number)
    ]
    if len(fitting) != 1:
        raise TimestampRefused(
            f"the timestamp names a signer whom {len(fitting)} certificates fit, where there must "
            "be one; ask again"
        )
    return fitting[0]


def _accuracy(accuracy: Accuracy | None) -> timedelta | None:
    if accuracy is None:
        return None
    return timedelta(
        seconds=accuracy.seconds or 0,
        milliseconds=accuracy.millis or 0,
        microseconds=accuracy.micros or 0,
    )


def _malformed(error: Exception) -> TimestampRefused:
    """Whatever a library makes of bytes that nobody vouches for."""
    return TimestampRefused(
        f"the timestamp is no sound RFC 3161 response ({_brief(error)}); give the response of the "
        "authority as it came, in DER"
    )


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {_printable(str(error))[:200]}"


def _printable(text: str) -> str:
    """Without what could move a cursor or turn the direction of writing."""
    return "".join(c if c.isprintable() else " " for c in text)
