"""A time-stamping authority of the tests' own: a root, its certificate, and what it answers."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone

from asn1crypto import algos, cms, core, tsp
from asn1crypto import x509 as asn1_x509
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NOON = datetime(2026, 1, 31, 12, 0, 0, tzinfo=timezone.utc)
START, END = NOON - timedelta(days=365), NOON + timedelta(days=365)


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


@functools.cache
def key(owner: str) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def certificate(
    subject: str,
    issuer: str,
    *,
    ca: bool = False,
    purpose: x509.ObjectIdentifier | None = None,
    critical: bool = True,
    serial: int | None = None,
    first: datetime = START,
    last: datetime = END,
    signed_by: str | None = None,
    key_of: str | None = None,
) -> x509.Certificate:
    """A certificate on the key of ``subject``, signed with the key of the issuer, unless told."""
    public_key = key(key_of or subject).public_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(public_key)
        .serial_number(serial or x509.random_serial_number())
        .not_valid_before(first)
        .not_valid_after(last)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )
    if purpose is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=critical)
    return builder.sign(key(signed_by or issuer), hashes.SHA256())


@dataclass(frozen=True)
class Authority:
    """A root and a certificate for timestamps; ``response`` answers for data."""

    title: str = "Test TSA"
    root: x509.Certificate = field(init=False)
    own: x509.Certificate = field(init=False)

    def __post_init__(self) -> None:
        root = f"{self.title} root"
        object.__setattr__(self, "root", certificate(root, root, ca=True))
        purpose = ExtendedKeyUsageOID.TIME_STAMPING
        object.__setattr__(self, "own", certificate(self.title, root, purpose=purpose))

    def roots_pem(self) -> bytes:
        return self.root.public_bytes(Encoding.PEM)

    def response(
        self,
        data: bytes,
        time: datetime = NOON,
        *,
        hash_name: str = "sha256",
        accuracy: tuple[int, int, int] | None = (1, 0, 0),
        signer: x509.Certificate | None = None,
        embedded: list[x509.Certificate] | None = None,
        imprint: bytes | None = None,
    ) -> bytes:
        """A granted answer as the RFC has it, unless told to be odd."""
        signer = signer or self.own
        seconds, millis, micros = accuracy or (0, 0, 0)
        info = {
            "version": "v1",
            "policy": "1.3.6.1.4.1.32473.1",
            "message_imprint": {
                "hash_algorithm": {"algorithm": hash_name, "parameters": core.Null()},
                "hashed_message": imprint or hashlib.new(hash_name, data).digest(),
            },
            "serial_number": 7,
            "gen_time": time,
        }
        if accuracy is not None:
            info["accuracy"] = {"seconds": seconds}
            if millis:
                info["accuracy"]["millis"] = millis
            if micros:
                info["accuracy"]["micros"] = micros
        content = tsp.TSTInfo(info).dump()
        attributes = cms.CMSAttributes(
            [
                {"type": "content_type", "values": ["tst_info"]},
                {"type": "signing_time", "values": [cms.Time({"utc_time": time})]},
                {"type": "message_digest", "values": [hashlib.sha256(content).digest()]},
                {
                    "type": "signing_certificate_v2",
                    "values": [{"certs": [{"cert_hash": signer.fingerprint(hashes.SHA256())}]}],
                },
            ]
        )
        owner = signer.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
        assert isinstance(owner, str)
        signature = key(owner).sign(attributes.dump(), ec.ECDSA(hashes.SHA256()))
        parsed = asn1_x509.Certificate.load(signer.public_bytes(Encoding.DER))
        certificates = [signer] if embedded is None else embedded
        signed = cms.SignedData(
            {
                "version": "v3",
                "digest_algorithms": [algos.DigestAlgorithm({"algorithm": "sha256"})],
                "encap_content_info": {
                    "content_type": "tst_info",
                    "content": core.ParsableOctetString(content),
                },
                "certificates": [
                    asn1_x509.Certificate.load(one.public_bytes(Encoding.DER))
                    for one in certificates
                ],
                "signer_infos": [
                    {
                        "version": "v1",
                        "sid": cms.SignerIdentifier(
                            {
                                "issuer_and_serial_number": {
                                    "issuer": parsed.issuer,
                                    "serial_number": parsed.serial_number,
                                }
                            }
                        ),
                        "digest_algorithm": {"algorithm": "sha256"},
                        "signed_attrs": attributes,
                        "signature_algorithm": {"algorithm": "sha256_ecdsa"},
                        "signature": signature,
                    }
                ],
            }
        )
        token = cms.ContentInfo({"content_type": "signed_data", "content": signed})
        return tsp.TimeStampResp(
            {"status": {"status": "granted"}, "time_stamp_token": token}
        ).dump()


def refusal(reason: str) -> bytes:
    """An answer without a token."""
    status = tsp.PKIStatusInfo({"status": "rejection", "status_string": [reason]}).dump()
    return bytes([0x30, len(status)]) + status
