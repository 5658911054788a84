"""Ed25519 keys and signed envelopes: base64 of the signature, a newline, the signed bytes."""

from __future__ import annotations

import base64
import binascii
import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from edge_sdk.errors import ConfigError, ProtocolError, SignatureError

# Signed in front of every payload, so that a signature made elsewhere with the key fits nothing.
CONTEXT = b"trajsyn message 1\n"
SIGNATURE_LINE_BYTES = 89  # 64 bytes are 88 characters of base64, then the newline


def seal(payload: bytes, key: Ed25519PrivateKey) -> bytes:
    """Return the envelope of `payload`: what goes on the wire."""
    return base64.b64encode(key.sign(CONTEXT + payload)) + b"\n" + payload


def open_sealed(envelope: bytes, key: Ed25519PublicKey) -> bytes:
    """Return the payload exactly as signed; raises `SignatureError` unless `key` signed it."""
    payload = unverified_payload(envelope)
    signature = base64.b64decode(envelope[: SIGNATURE_LINE_BYTES - 1])
    try:
        key.verify(signature, CONTEXT + payload)
    except InvalidSignature as error:
        raise SignatureError("the signature does not belong to this message and key") from error
    return payload


def unverified_payload(envelope: bytes) -> bytes:
    """Return the payload without checking who signed it; raises `ProtocolError` if malformed."""
    head, payload = envelope[:SIGNATURE_LINE_BYTES], envelope[SIGNATURE_LINE_BYTES:]
    try:
        signature = base64.b64decode(head[:-1], validate=True)
    except (binascii.Error, ValueError) as error:
        raise ProtocolError("message does not begin with a signature") from error
    # The last character of base64 has bits to spare: one signature, one spelling.
    if len(signature) != 64 or base64.b64encode(signature) + b"\n" != head:
        raise ProtocolError("message does not begin with a signature")
    return payload


def create_key(path: Path) -> Ed25519PrivateKey:
    """Create a private key file (PEM, mode 0600) and its `.pub` beside it; never overwrites.

    Raises `ConfigError` if either exists or cannot be written.
    """
    public_path = path.with_suffix(".pub")
    for taken in (path, public_path):
        if taken.exists():
            raise ConfigError(f"{taken} exists; a key is never overwritten, move it away first")
    if path == public_path:
        raise ConfigError(f"{path} cannot end in .pub: that file is for the public key")
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise ConfigError(f"cannot create the private key {path}: {error.strerror}") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())
    public_path.write_text(public_key_text(key.public_key()) + "\n")
    return key


def load_private_key(path: Path) -> Ed25519PrivateKey:
    """Return the key in a PEM file; raises `ConfigError` naming the file."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise ConfigError(f"cannot read the private key {path}: {error.strerror}") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path} holds no usable private key: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path} holds another kind of key; Ed25519 is needed")
    return key


def public_key_text(key: Ed25519PublicKey) -> str:
    """Return the one-line text form of a public key: `ed25519:` and 43 characters."""
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return "ed25519:" + base64.urlsafe_b64encode(raw).decode().rstrip("=")


def parse_public_key(text: str) -> Ed25519PublicKey:
    """Return the key in `public_key_text` form; raises `ConfigError` for anything else."""
    line = text.strip()
    try:
        raw = base64.b64decode(line.removeprefix("ed25519:") + "=", altchars=b"-_", validate=True)
        key = Ed25519PublicKey.from_public_bytes(raw)
    except ValueError:
        key = None
    if key is None or public_key_text(key) != line:
        raise ConfigError(f"{line[:80]!r} is no public key: expected 'ed25519:' and 43 characters")
    return key


def load_public_key(path: Path) -> Ed25519PublicKey:
    """Return the key in a `.pub` file; raises `ConfigError` naming the file."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the public key {path}: {error}") from error
    try:
        return parse_public_key(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
