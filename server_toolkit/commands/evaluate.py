"""`server-toolkit evaluate`: what models and their ONNX files are worth, clean and attacked."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server_toolkit.commands.compute import DeviceOption, ThreadsOption, choose_device
from server_toolkit.commands.options import DEFAULT_CONFIG, ConfigOption, JsonFileOption
from server_toolkit.commands.progress import interrupt_on_sigterm, show_progress

if TYPE_CHECKING:
    from rich.table import Table


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(evaluate)


def evaluate(
    *,
    name: Annotated[
        list[str], typer.Option(help="A model, or fedavg; give several to compare them.")
    ],
    on: Annotated[
        str | None,
        typer.Option(
            help="Judge on test_set, server_set or the proxy set of this name; "
            "default: the test set where there is one.",
            metavar="IMAGES",
        ),
    ] = None,
    json_file: JsonFileOption = None,
    threads: ThreadsOption = 0,
    device: DeviceOption = "auto",
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Measure clean, FGSM and PGD accuracy of torch, ONNX fp32 and ONNX int8.

    Writes evaluations/NAME.json. Intervals are 95 % (Wilson). All three answer the same adversarial
    images, made on the torch model. What is evaluated already is not computed again.
    """
    from server_toolkit.config import load_config
    from server_toolkit.stages.evaluate import find_judge, run_evaluate
    from server_toolkit.stages.workspace import Workspace

    interrupt_on_sigterm()
    workspace = Workspace.open(load_config(config))
    judge = find_judge(workspace, name, on=on)
    torch_device = choose_device(device, threads=threads)
    results = []
    for model in name:
        with show_progress(f"evaluate {model}") as progress:
            results.append(
                run_evaluate(workspace, model, judge=judge, progress=progress, device=torch_device)
            )
    show_results(results)
    if json_file is not None:
        json_file.write_text(json.dumps({"evaluations": results}, indent=1))


def show_results(results: list[dict[str, Any]]) -> None:
    """Print one row a model and file, one column a condition; all were judged on one set."""
    from rich.console import Console

    console = Console()
    judged_on = results[0]["judged_on"]
    console.print(_table(results))
    where = f"judged on {judged_on['images']} images of {judged_on['name']}"
    console.print(where, markup=False, soft_wrap=True)
    if judged_on["warning"]:
        warning = f"WARNING: {judged_on['warning']}"
        console.print(warning, style="bold red", markup=False, soft_wrap=True)


def _table(results: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    conditions = [
        (score["attack"], score["epsilon"], score["steps"])
        for score in results[0]["scores"]
        if score["predictor"] == "torch"
    ]
    table = Table(title="accuracy, % [95 % interval]")
    table.add_column("model")
    table.add_column("file")
    for attack, epsilon, steps in conditions:
        label = "clean" if attack == "clean" else f"{attack.upper()}-{steps} ε={epsilon:g}"
        table.add_column(label, justify="right")
    for result in results:
        by_condition = {
            (s["predictor"], s["attack"], s["epsilon"], s["steps"]): s for s in result["scores"]
        }
        for predictor in ("torch", "onnx_fp32", "onnx_int8"):
            scores = [by_condition[predictor, *condition] for condition in conditions]
            table.add_row(result["name"], predictor.replace("_", " "), *map(_cell, scores))
    return table


def _cell(score: dict[str, Any]) -> str:
    low, high = 100 * score["low"], 100 * score["high"]
    return f"{100 * score['accuracy']:.1f} [dim]{low:.0f}–{high:.0f}[/dim]"
