"""Say which devices may use the broker, while it runs (mosquitto's dynamic-security plugin).

A device may publish on its own uplink and read its own downlink, the task and the release; nothing
else. Mosquitto 2.0 has no pattern for "its own" in this plugin, so every device has a role.
"""

from __future__ import annotations

import argparse
import json
import queue
import ssl
import sys
import uuid
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from edge_sdk.errors import EdgeError
from edge_sdk.protocol.topics import check_device_id

CONTROL = "$CONTROL/dynamic-security/v1"
TIMEOUT_S = 10.0


class RefusedError(Exception):
    """The broker cannot be reached or did not do what it was asked for."""


def role_of(device: str) -> dict[str, Any]:
    """Return the role of one device."""
    rules = [("publishClientSend", f"fl/v1/{device}/up/#"), ("unsubscribePattern", "#")]
    for topic in (f"fl/v1/{device}/dn/#", "fl/v1/all/#"):
        rules += [("publishClientReceive", topic), ("subscribePattern", topic)]
    acls = [{"acltype": kind, "topic": topic, "allow": True} for kind, topic in rules]
    return {"rolename": f"device-{device}", "acls": acls}


def commands_for(action: str, devices: list[str]) -> list[dict[str, Any]]:
    """Return what the plugin must be told; each part is right whatever was there before."""
    if action == "list":
        return [{"command": "listClients"}]
    commands: list[dict[str, Any]] = []
    for device in devices:
        role = role_of(device)
        commands += [
            {"command": "deleteClient", "username": device},  # this also ends its connection
            {"command": "deleteRole", "rolename": role["rolename"]},
        ]
        if action == "add":
            roles = [{"rolename": role["rolename"]}]
            commands += [
                {"command": "createRole", **role},
                {"command": "createClient", "username": device, "roles": roles},
                # A device that came before its rights has no subscriptions: make it come again.
                {"command": "disableClient", "username": device},
                {"command": "enableClient", "username": device},
            ]
    return commands


def ask(options: argparse.Namespace, commands: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Send the commands and return the plugin's answers; raises `RefusedError`."""
    answers: queue.Queue[bytes] = queue.Queue()
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id=f"access-{uuid.uuid4().hex[:8]}")
    context = ssl.create_default_context(cafile=options.ca)
    context.load_cert_chain(options.certificate, options.key)
    client.tls_set_context(context)

    def subscribe(*_: Any) -> None:
        client.subscribe(f"{CONTROL}/response", qos=1)

    def publish(*_: Any) -> None:
        client.publish(CONTROL, json.dumps({"commands": commands}), qos=1)

    def keep(_client: paho.Client, _user: Any, message: paho.MQTTMessage) -> None:
        answers.put(bytes(message.payload))

    client.on_connect, client.on_subscribe, client.on_message = subscribe, publish, keep
    try:
        client.connect(options.host, options.port)
    except OSError as error:
        raise RefusedError(f"cannot reach {options.host}:{options.port}: {error}") from error
    client.loop_start()
    try:
        responses: list[dict[str, Any]] = json.loads(answers.get(timeout=TIMEOUT_S))["responses"]
    except queue.Empty:
        raise RefusedError(
            f"no answer in {TIMEOUT_S:.0f} s; is {options.certificate} the admin's certificate?"
        ) from None
    finally:
        client.disconnect()
        client.loop_stop()
    return responses


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("add", "remove", "list"))
    parser.add_argument("devices", nargs="*", metavar="DEVICE")
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=8883)
    folder = Path("certificates")
    parser.add_argument("--ca", type=Path, default=folder / "ca.crt")
    parser.add_argument("--certificate", type=Path, default=folder / "admin.crt")
    parser.add_argument("--key", type=Path, default=folder / "admin-tls.key")
    return parser


def main() -> int:
    """Run one command; a mistake is one line and exit code 2."""
    parser = _parser()
    options = parser.parse_args()
    if (options.action == "list") == bool(options.devices):
        parser.error("name the devices to add or remove; `list` takes none")
    try:
        commands = commands_for(options.action, [check_device_id(d) for d in options.devices])
        answers = ask(options, commands)
    except (RefusedError, EdgeError, OSError) as error:
        sys.stderr.write(f"broker_access: {error}\n")
        return 2
    if options.action == "list":
        sys.stdout.writelines(f"{name}\n" for name in answers[0]["data"]["clients"])
        return 0
    # That there was nothing to delete is no failure.
    failed = [a for a in answers if "error" in a and not a["command"].startswith("delete")]
    for answer in failed:
        sys.stderr.write(f"broker_access: {answer['command']}: {answer['error']}\n")
    if not failed:
        sys.stdout.write(f"{options.action}: {' '.join(options.devices)}\n")
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
