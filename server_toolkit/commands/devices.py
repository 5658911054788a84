"""`server-toolkit devices`: who may take part in the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from edge_sdk.errors import ProtocolError
from edge_sdk.protocol.signing import load_public_key, parse_public_key, public_key_text
from edge_sdk.protocol.topics import check_device_id
from server_toolkit.commands.options import DEFAULT_CONFIG, ConfigOption
from server_toolkit.config import load_config
from server_toolkit.errors import ConfigError
from server_toolkit.ledger import Ledger

devices = typer.Typer(help="Enrol, list and disable devices.", no_args_is_help=True)

IdOption = Annotated[
    str, typer.Option("--id", help="3 to 40 of a-z, 0-9 and '-'.", metavar="DEVICE")
]


def register(app: typer.Typer) -> None:
    """Add the group to the command line."""
    app.add_typer(devices, name="devices")


@devices.command()
def add(
    *,
    device: IdOption,
    public_key: Annotated[
        str,
        typer.Option(help="The device's public key (ed25519:...) or its .pub file.", metavar="KEY"),
    ],
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Enrol a device, or take a disabled one back; a running `serve` knows it at once."""
    try:
        check_device_id(device)
    except ProtocolError as error:
        raise ConfigError(str(error)) from error
    is_text = public_key.startswith("ed25519:")
    key = parse_public_key(public_key) if is_text else load_public_key(Path(public_key))
    Ledger.open(load_config(config).directory).add_device(device, public_key_text(key))
    typer.echo(f"{device} is enrolled")


@devices.command("list")
def list_(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """List the enrolled devices."""
    rows = Ledger.open(load_config(config).directory).devices()
    if as_json:
        fields = [{"id": r.id, "active": r.active, "public_key": r.public_key} for r in rows]
        typer.echo(json.dumps(fields, indent=2))
        return
    for row in rows:
        typer.echo(f"{row.id:40}  {'active' if row.active else 'disabled':8}  {row.public_key}")
    if not rows:
        typer.echo("no device is enrolled; add one with 'server-toolkit devices add'")


@devices.command()
def disable(*, device: IdOption, config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Refuse a device from now on; its recorded updates stay."""
    Ledger.open(load_config(config).directory).disable_device(device)
    typer.echo(f"{device} is disabled")
