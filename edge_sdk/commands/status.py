"""`edge-sdk status`: what the agent on this device is doing."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

HELP = "show what the agent is doing, what it still has to send and which model it runs"


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    parser = commands.add_parser("status", help=HELP, description=HELP)
    parser.add_argument("--config", type=Path, default=Path("device.toml"), metavar="FILE")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the status; also works while the agent runs or after it died."""
    from edge_sdk.agent.config import load_config
    from edge_sdk.agent.progress import read_progress

    fields = read_progress(load_config(options.config).state)
    if options.json:
        print(json.dumps(fields, indent=1))
        return 0
    for name, value in _rows(fields):
        print(f"{name:<9} {value}")
    return 0


def _rows(fields: dict[str, Any]) -> list[tuple[str, str]]:
    state = " ".join(str(fields.get(k) or "") for k in ("state", "detail")).strip()
    if "device" not in fields:
        return [("agent", state)]
    age_s = time.time() - fields["at_s"]
    alive = "running" if fields["running"] else f"not running, last heard of {age_s:.0f} s ago"
    rows = [
        ("device", fields["device"]),
        ("agent", alive + ("" if fields["connected"] else ", not connected")),
        ("doing", state + (f" (round {fields['round']})" if fields["round"] is not None else "")),
        ("to send", f"{fields['outbox']} item(s)"),
        ("traffic", f"{fields['bytes_up']:,} bytes up, {fields['bytes_down']:,} down"),
    ]
    version = fields["active_version"]
    rows.append(
        ("model", f"version {version} in slot {fields['active_slot']}" if version else "none yet")
    )
    if last := fields["last_release"]:
        rows.append(("release", f"version {last['version']}: {last['verdict']} ({last['reason']})"))
    return rows
