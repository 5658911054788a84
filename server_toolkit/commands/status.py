"""`server-toolkit status`: what the run, its devices and its releases are doing."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from server_toolkit.commands.options import DEFAULT_CONFIG, ConfigOption
from server_toolkit.config import load_config
from server_toolkit.ledger import Ledger


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(status)


def status(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Show the round, the devices, their updates, and what each one runs."""
    settings = load_config(config)
    summary = summarise(Ledger.open(settings.directory), rounds=settings.run.rounds)
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
    else:
        _print(summary)


def summarise(ledger: Ledger, *, rounds: int) -> dict[str, Any]:
    """Return everything that the command shows, as JSON-ready values."""
    statuses = {row.device: row for row in ledger.statuses()}
    installs = {row.device: row for row in ledger.installs()}
    updates: dict[str, int] = {}
    for update in ledger.updates():
        updates[update.device] = updates.get(update.device, 0) + 1
    devices = []
    for device in ledger.devices():
        seen, install = statuses.get(device.id), installs.get(device.id)
        devices.append(
            {
                "id": device.id,
                "active": device.active,
                "seen_at_s": seen.received_at_s if seen else None,
                "state": seen.state if seen else None,
                "detail": seen.detail if seen else None,
                "updates": updates.get(device.id, 0),
                "bytes_up": seen.bytes_up if seen else 0,
                "bytes_down": seen.bytes_down if seen else 0,
                "active_version": seen.active_version if seen else 0,
                "install_verdict": install.verdict if install else None,
                "install_reason": install.reason if install else None,
            }
        )
    release = ledger.latest_release()
    return {
        "run": ledger.run,
        "rounds_closed": ledger.latest_round(),
        "rounds": rounds,
        "updates": ledger.update_counts(),
        "devices": devices,
        "artefacts": [{"kind": a.kind, "name": a.name} for a in ledger.artefacts()],
        "release": {"name": release.name, "version": release.version} if release else None,
        "server": _server(ledger.directory / "serve.json"),
    }


def _server(file: Path) -> dict[str, Any] | None:
    """Return what `serve` last said of itself, "gone" if its process no longer exists."""
    try:
        said: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    if said.get("state") == "serving" and not _is_alive(int(said["pid"])):
        said["state"] = "gone"
    return said


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _print(summary: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    server, release, counts = summary["server"], summary["release"], summary["updates"]
    pipeline = f", pipeline {server['pipeline']}" if server else ""
    console.print(
        f"run {summary['run']}: {summary['rounds_closed']} of {summary['rounds']} rounds closed, "
        f"{counts['accepted']} updates accepted, {counts['late']} late"
    )
    console.print(f"server: {server['state'] if server else 'never started'}{pipeline}")
    console.print(
        f"release: {release['name']} version {release['version']}" if release else "release: none"
    )
    table = Table("device", "seen", "state", "updates", "up", "down", "runs", "last install")
    for row in summary["devices"]:
        install = row["install_verdict"] or ""
        if row["install_reason"] and install != "running":
            install += f": {row['install_reason']}"
        table.add_row(
            row["id"],
            _ago(row["seen_at_s"]),
            (row["state"] or "") if row["active"] else "disabled",
            str(row["updates"]),
            f"{row['bytes_up'] / 1e6:.1f} MB",
            f"{row['bytes_down'] / 1e6:.1f} MB",
            f"version {row['active_version']}" if row["active_version"] else "",
            install,
        )
    console.print(table)


def _ago(at_s: float | None) -> str:
    if at_s is None:
        return "never"
    seconds = max(time.time() - at_s, 0)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
