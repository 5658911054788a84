"""`server-toolkit trajectories`: what the ledger remembers of the weights' path."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated, Any

import numpy as np
import typer

from server_toolkit.commands.options import DEFAULT_CONFIG, ConfigOption
from server_toolkit.config import load_config
from server_toolkit.errors import LedgerError
from server_toolkit.ledger import Ledger, schema
from server_toolkit.ledger.trajectories import verify as find_differences

trajectories = typer.Typer(
    help="List, show and verify the recorded weight trajectories.", no_args_is_help=True
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add the group to the command line."""
    app.add_typer(trajectories, name="trajectories")


@trajectories.command("list")
def list_(*, as_json: JsonOption = False, config: ConfigOption = DEFAULT_CONFIG) -> None:
    """List the rounds with the updates that each received."""
    ledger = Ledger.open(load_config(config).directory)
    rows: list[dict[str, Any]] = []
    for row in ledger.rounds():
        updates = ledger.updates(row.number)
        rows.append(
            {
                "round": row.number,
                "state": "open" if row.closed_at_s is None else "closed",
                "base_sha256": row.base_sha256,
                "updates": [_fields(update) for update in updates],
            }
        )
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    for shown in rows:
        typer.echo(f"round {shown['round']} ({shown['state']}) from {shown['base_sha256'][:12]}")
        for update in shown["updates"]:
            typer.echo(
                f"  {update['device']:24} {update['verdict']:8} {update['size_bytes']:>9} bytes  "
                f"{update['samples']:>6} samples  loss {update['loss_first']:.3f} -> "
                f"{update['loss_last']:.3f}  norm {update['norm']:.4f}"
            )
    if not rows:
        typer.echo("no round has begun; start 'server-toolkit serve'")


@trajectories.command()
def show(
    *,
    device: Annotated[
        str | None, typer.Option(help="A device's path; default: the fleet's.")
    ] = None,
    as_json: JsonOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Rebuild a path from the ledger and show how far the weights moved in each round."""
    ledger = Ledger.open(load_config(config).directory)
    if device is None:
        path = {t: ledger.global_weights(t) for t in range(ledger.latest_round() + 1)}
    else:
        rounds = [update.round for update in ledger.updates() if update.device == device]
        if not rounds:
            raise LedgerError(f"{device} has no recorded update")
        path = {t: ledger.device_weights(device, t) for t in rounds}
    first = next(iter(path.values()))
    before, rows = first, []
    for t, weights in path.items():
        rows.append(
            {
                "round": t,
                "norm": float(np.linalg.norm(weights)),
                "step": float(np.linalg.norm(weights - before)),
                "from_start": float(np.linalg.norm(weights - first)),
            }
        )
        before = weights
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    typer.echo("round       norm       step  from start")
    for row in rows:
        typer.echo(
            f"{row['round']:>5} {row['norm']:>10.4f} {row['step']:>10.4f} "
            f"{row['from_start']:>11.4f}"
        )


@trajectories.command()
def statistics(*, as_json: JsonOption = False, config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Show how far and how surely the fleet moved in each round, and the window "auto" of it."""
    from server_toolkit.commands.statistics_table import statistics_table
    from server_toolkit.distill.windows import choose_window, round_statistics

    paths = Ledger.open(load_config(config).directory).trajectories()
    rows = round_statistics(paths)
    window = choose_window("auto", paths)
    if as_json:
        found = {"rounds": [row.to_dict() for row in rows], "window": dataclasses.asdict(window)}
        typer.echo(json.dumps(found, indent=2))
        return
    typer.echo(statistics_table(rows, window))


@trajectories.command()
def verify(*, config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Compute every hash and every round's aggregate anew; ends with 3 if anything differs."""
    ledger = Ledger.open(load_config(config).directory)
    differences = list(find_differences(ledger))
    for difference in differences:
        typer.echo(difference)
    if differences:
        raise LedgerError(f"{len(differences)} differences; restore the files named above")
    updates = sum(ledger.update_counts().values())
    typer.echo(
        f"{updates} updates and {ledger.latest_round()} aggregates are as they were received"
    )


def _fields(update: schema.Update) -> dict[str, Any]:
    names = (
        "device",
        "verdict",
        "blob_sha256",
        "size_bytes",
        "encoding",
        "samples",
        "loss_first",
        "loss_last",
        "norm",
        "wall_s",
        "cpu_s",
    )
    return {name: getattr(update, name) for name in names}
