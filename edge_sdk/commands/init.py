"""`edge-sdk init`: make a device's key and configuration."""

from __future__ import annotations

import argparse
from pathlib import Path

from edge_sdk.errors import ConfigError, ProtocolError

HELP = "create a device's key and device.toml, and print what the server must be told"

TEMPLATE = """\
# One device of a TrajSyn fleet. Relative paths are relative to this file.
device = {device}
state_directory = "state"            # outbox, model slots, downloads; never delete while training
private_key = "device.key"           # made on this device, never leaves it
server_public_key = "server.pub"     # tasks and releases that it did not sign are refused
heartbeat_s = 30

[broker]
host = {host}
port = {port}
# username = "cam-01"
# password_file = "password"
# tls_ca = "ca.crt"                  # turns TLS on
# tls_certificate = "device.crt"     # with tls_key: mutual TLS
# tls_key = "device-tls.key"

[data]
kind = {kind}                        # "folder" (class/image.png), "npz" (images, labels), "digits"
{path}
# partition = "partition.json"       # a simulated device: only its share of the images

[compute]
threads = {threads}
niceness = 10                        # 0 (equal to all) to 19 (only idle time)
duty_cycle = 1.0                     # part of the time that training may take: 0.5 rests half of it

[model]
precision = "int8"                   # or "fp32": which file of a release to run
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    parser = commands.add_parser("init", help=HELP, description=HELP)
    parser.add_argument("directory", type=Path, help="new directory for this device's files")
    parser.add_argument("--device", required=True, help="id: 3-40 of a-z, 0-9, '-'")
    parser.add_argument("--server-key", type=Path, required=True, help="the server's .pub file")
    parser.add_argument("--host", default="127.0.0.1", help="the MQTT broker")
    parser.add_argument("--port", type=int, default=1883)
    parser.add_argument("--data", required=True, help="folder, .npz file, or `digits`")
    parser.add_argument("--threads", type=int, default=1)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the files and print the public key."""
    import json
    import os

    from edge_sdk.agent.config import load_config
    from edge_sdk.protocol.signing import create_key, load_public_key, public_key_text
    from edge_sdk.protocol.topics import check_device_id

    try:
        check_device_id(options.device)
    except ProtocolError as error:
        raise ConfigError(f"--device: {error}") from error
    server_key = load_public_key(options.server_key)
    directory: Path = options.directory
    if directory.exists() and any(directory.iterdir()):
        raise ConfigError(f"{directory} is not empty; choose a new directory")
    directory.mkdir(parents=True, exist_ok=True)
    kind = "digits" if options.data == "digits" else "npz"
    if kind == "npz" and not options.data.endswith(".npz"):
        kind = "folder"
    path = "" if kind == "digits" else os.path.relpath(Path(options.data).resolve(), directory)
    text = TEMPLATE.format(
        device=json.dumps(options.device),
        host=json.dumps(options.host),
        port=options.port,
        kind=json.dumps(kind),
        path=f"path = {json.dumps(path)}" if path else "# no path: the images are built in",
        threads=options.threads,
    )
    key = create_key(directory / "device.key")
    (directory / "server.pub").write_text(public_key_text(server_key) + "\n")
    (directory / "device.toml").write_text(text)
    load_config(directory / "device.toml")
    if path and not Path(options.data).exists():
        print(f"note: there is nothing at {options.data} yet; put the images there before training")
    print(f"{directory / 'device.toml'} is ready. Tell the server about this device:")
    print(
        f"  server-toolkit devices add --id {options.device} "
        f"--public-key {public_key_text(key.public_key())}"
    )
    return 0
