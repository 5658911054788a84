"""Signatures and key files."""

import base64
import stat

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from edge_sdk.errors import ConfigError, ProtocolError, SignatureError
from edge_sdk.protocol.signing import (
    SIGNATURE_LINE_BYTES,
    create_key,
    load_private_key,
    load_public_key,
    open_sealed,
    parse_public_key,
    public_key_text,
    seal,
    unverified_payload,
)

# RFC 8032, section 7.1, test 1: a public key
RFC_PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
RFC_SECRET = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")


@pytest.fixture
def key():
    return ed25519.Ed25519PrivateKey.from_private_bytes(RFC_SECRET)


@pytest.mark.parametrize("payload", [b"", b"{}", b"a\nb\n", bytes(range(256))])
def test_the_payload_comes_back_exactly_as_signed(key, payload):
    envelope = seal(payload, key)
    assert open_sealed(envelope, key.public_key()) == payload
    assert unverified_payload(envelope) == payload
    assert envelope[SIGNATURE_LINE_BYTES:] == payload


def test_every_single_flipped_bit_is_refused(key):
    public = key.public_key()
    envelope = seal(b'{"type":"done"}', key)
    for bit in range(8 * len(envelope)):
        forged = bytearray(envelope)
        forged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ProtocolError):
            open_sealed(bytes(forged), public)


def test_every_truncation_and_extension_is_refused(key):
    public = key.public_key()
    envelope = seal(b"payload", key)
    for length in range(len(envelope)):
        with pytest.raises(ProtocolError):
            open_sealed(envelope[:length], public)
    with pytest.raises(SignatureError):
        open_sealed(envelope + b" ", public)


def test_another_key_does_not_fit(key):
    other = ed25519.Ed25519PrivateKey.generate()
    with pytest.raises(SignatureError):
        open_sealed(seal(b"x", other), key.public_key())


def test_a_signature_made_for_another_purpose_does_not_fit(key):
    envelope = base64.b64encode(key.sign(b"payload")) + b"\n" + b"payload"
    with pytest.raises(SignatureError):
        open_sealed(envelope, key.public_key())


@pytest.mark.parametrize(
    "envelope",
    [b"", b"\n", b"{}", b"A" * 89, b"A" * 88 + b"\n", b"\xff" * 200, b"A" * 87 + b"=\r{}"],
)
def test_what_does_not_begin_with_a_signature_is_malformed(key, envelope):
    with pytest.raises(ProtocolError):
        unverified_payload(envelope)
    with pytest.raises(ProtocolError):
        open_sealed(envelope, key.public_key())


def test_a_key_file_is_private_and_loads_again(tmp_path):
    path = tmp_path / "device.pem"
    key = create_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    envelope = seal(b"x", load_private_key(path))
    assert open_sealed(envelope, key.public_key()) == b"x"
    assert open_sealed(envelope, load_public_key(tmp_path / "device.pub")) == b"x"
    assert b"PRIVATE" not in (tmp_path / "device.pub").read_bytes()


def test_no_key_file_is_ever_overwritten(tmp_path):
    create_key(tmp_path / "a.pem")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(ConfigError, match=r"a\.pem exists"):
        create_key(tmp_path / "a.pem")
    with pytest.raises(ConfigError, match=r"a\.pub exists"):
        create_key(tmp_path / "a.key")
    with pytest.raises(ConfigError, match=r"\.pub"):
        create_key(tmp_path / "b.pub")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_key_that_cannot_be_written_is_a_configuration_error(tmp_path):
    with pytest.raises(ConfigError, match="no-such-folder"):
        create_key(tmp_path / "no-such-folder" / "a.pem")


@pytest.mark.parametrize("content", [b"", b"not a key", b"\xff\xfe", b"ed25519:abc"])
def test_a_file_without_a_key_is_named(tmp_path, content):
    path = tmp_path / "odd"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="odd"):
        load_private_key(path)
    with pytest.raises(ConfigError, match="odd"):
        load_public_key(path)


def test_a_missing_file_is_named(tmp_path):
    for load in (load_private_key, load_public_key):
        with pytest.raises(ConfigError, match="gone"):
            load(tmp_path / "gone")


def _pem(key, encryption):
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )


def test_a_private_key_of_another_kind_or_with_a_password_is_refused(tmp_path):
    path = tmp_path / "other.pem"
    path.write_bytes(_pem(ec.generate_private_key(ec.SECP256R1()), serialization.NoEncryption()))
    with pytest.raises(ConfigError, match="Ed25519"):
        load_private_key(path)
    locked = serialization.BestAvailableEncryption(b"password")
    path.write_bytes(_pem(ed25519.Ed25519PrivateKey.generate(), locked))
    with pytest.raises(ConfigError, match=r"other\.pem"):
        load_private_key(path)


def test_public_key_text_of_a_published_key(key):
    text = public_key_text(key.public_key())
    assert text == "ed25519:" + base64.urlsafe_b64encode(RFC_PUBLIC).decode().rstrip("=")
    assert len(text) == len("ed25519:") + 43
    assert public_key_text(parse_public_key(f"  {text}\n")) == text


def test_a_public_key_has_one_spelling(key):
    text = public_key_text(key.public_key())
    for wrong in (
        "",
        "ed25519:",
        text.removeprefix("ed25519:"),
        text.upper(),
        text.replace("ed25519", "rsa"),
        text[:-1],
        text + "A",
        text + "=",
        text[:-1] + chr(ord(text[-1]) + 1),  # the two spare bits of the last character
        text.replace(":", ":ed25519:"),
        text[:20] + "\n" + text[20:],
        text[:20] + "é" + text[21:],
    ):
        with pytest.raises(ConfigError):
            parse_public_key(wrong)
