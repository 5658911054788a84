"""Make and revoke the certificates with which broker, server and devices know each other.

A small private certificate authority in one directory: ca.crt (give it to everybody), ca.key (give
it to nobody), ca.crl (what is revoked, for the broker), and NAME.crt with NAME-tls.key for each
party. The common name of a certificate is the MQTT user name that the broker sees.
"""

from __future__ import annotations

import argparse
import datetime
import ipaddress
import os
import sys
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edge_sdk.errors import EdgeError
from edge_sdk.protocol.topics import check_device_id

EPILOG = """\
example:
  python make_certificates.py ca
  python make_certificates.py broker --host mqtt.example.org --host 192.0.2.10
  python make_certificates.py server
  python make_certificates.py admin
  python make_certificates.py device cam-01 cam-02 --days 365
  python make_certificates.py revoke cam-01      # then give ca.crl to the broker and reload it

Keys are written with mode 0600 and no file is ever overwritten (but ca.crl by `revoke`): to renew
a certificate, move the old NAME.crt and NAME-tls.key away first. Exit code 2: nothing was done.
"""
RESERVED = ("ca", "broker", "server", "admin")


class RefusedError(Exception):
    """A request that cannot be met; the message says what to do."""


class Authority:
    """The certificate authority in one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        try:
            self.certificate = x509.load_pem_x509_certificate((directory / "ca.crt").read_bytes())
            key = serialization.load_pem_private_key((directory / "ca.key").read_bytes(), None)
        except (OSError, ValueError) as error:
            raise RefusedError(
                f"{directory} holds no authority ({error}); begin with `ca`"
            ) from error
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self.key = key

    @classmethod
    def create(cls, directory: Path, *, days: int) -> Authority:
        """Make the authority's own key and certificate, and an empty revocation list."""
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name("TrajSyn fleet CA")
        certificate = (
            _certificate(name, key, issuer=name, issuer_key=key, days=days)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(authority=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        _write_pair(directory / "ca.crt", certificate, directory / "ca.key", key)
        authority = cls(directory)
        authority.write_revoked([])
        return authority

    def issue(self, common_name: str, *, days: int, hosts: list[str] | None = None) -> Path:
        """Write NAME.crt and NAME-tls.key: for the broker with `hosts`, else for a client."""
        key = ec.generate_private_key(ec.SECP256R1())
        purpose = ExtendedKeyUsageOID.SERVER_AUTH if hosts else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = (
            _certificate(
                _name(common_name),
                key,
                issuer=self.certificate.subject,
                issuer_key=self.key,
                days=days,
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        )
        if hosts:
            names = x509.SubjectAlternativeName([_alternative_name(host) for host in hosts])
            builder = builder.add_extension(names, critical=False)
        path = self.directory / f"{common_name}.crt"
        certificate = builder.sign(self.key, hashes.SHA256())
        _write_pair(path, certificate, self.directory / f"{common_name}-tls.key", key)
        return path

    def revoke(self, name: str) -> None:
        """Add the certificate NAME.crt to ca.crl."""
        path = self.directory / f"{name}.crt"
        try:
            serial = x509.load_pem_x509_certificate(path.read_bytes()).serial_number
            revoked = x509.load_pem_x509_crl((self.directory / "ca.crl").read_bytes())
        except (OSError, ValueError) as error:
            raise RefusedError(f"cannot revoke {name}: {error}") from error
        self.write_revoked([*{*(entry.serial_number for entry in revoked), serial}])

    def write_revoked(self, serials: list[int]) -> None:
        """Replace ca.crl; it is valid as long as the authority, as brokers refuse all without."""
        now = _now()
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now)
            .next_update(self.certificate.not_valid_after_utc)
        )
        for serial in serials:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now)
            builder = builder.add_revoked_certificate(entry.build())
        data = builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        draft = self.directory / "ca.crl.new"
        draft.write_bytes(data)
        draft.replace(self.directory / "ca.crl")


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _alternative_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _certificate(
    subject: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    *,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    days: int,
) -> x509.CertificateBuilder:
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_now() - datetime.timedelta(days=1))  # a device's clock may be behind
        .not_valid_after(_now() + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(identifier, critical=False)
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _write_pair(
    path: Path, certificate: x509.Certificate, key_path: Path, key: ec.EllipticCurvePrivateKey
) -> None:
    """Write both files, or neither if one exists."""
    for taken in (path, key_path):
        if taken.exists():
            raise RefusedError(f"{taken} exists and is not overwritten; move it away first")
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    descriptor = os.open(key_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def _days(text: str) -> int:
    days = int(text)
    if not 1 <= days <= 36500:
        raise argparse.ArgumentTypeError("between 1 and 36500")
    return days


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, days, meaning in (
        ("ca", 3650, "make the certificate authority; do this first, once"),
        ("broker", 730, "make the broker's certificate"),
        ("server", 730, "make the client certificate of server-toolkit"),
        ("admin", 730, "make the client certificate of broker_access.py"),
        ("device", 730, "make client certificates of devices"),
        ("revoke", None, "put a certificate on the revocation list"),
    ):
        command = commands.add_parser(name, help=meaning, description=meaning)
        command.add_argument("--directory", type=Path, default=Path("certificates"), metavar="DIR")
        if days:
            text = f"until the certificate expires (default {days})"
            command.add_argument("--days", type=_days, default=days, help=text)
        if name == "broker":
            text = "a name or address under which clients reach it; may be repeated"
            command.add_argument("--host", action="append", required=True, help=text)
        if name in ("device", "revoke"):
            command.add_argument("names", nargs="+", metavar="NAME", help="device id")
    return parser


def _say(text: object) -> None:
    sys.stdout.write(f"{text}\n")


def _run(options: argparse.Namespace) -> None:
    directory: Path = options.directory
    if options.command == "ca":
        Authority.create(directory, days=options.days)
        _say(f"{directory / 'ca.crt'}; keep ca.key off the broker, the server and the devices")
        return
    authority = Authority(directory)
    if options.command == "revoke":
        for name in options.names:
            authority.revoke(name)
        _say(f"{directory / 'ca.crl'}: now install it on the broker and reload the broker")
        return
    if options.command == "device":
        for name in options.names:
            if check_device_id(name) in RESERVED:
                raise RefusedError(f"{name} cannot be a device: the name has another meaning here")
    names = options.names if options.command == "device" else [options.command]
    for name in names:
        hosts = options.host if options.command == "broker" else None
        _say(authority.issue(name, days=options.days, hosts=hosts))


def main() -> int:
    """Run one command; a mistake is one line and exit code 2."""
    try:
        _run(_parser().parse_args())
    except (RefusedError, EdgeError, OSError) as error:
        sys.stderr.write(f"make_certificates: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
