"""`server-toolkit benchmark`: what the method is worth beside its controls."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server_toolkit.commands.compute import DeviceOption, ThreadsOption, choose_device
from server_toolkit.commands.options import JsonFileOption, check_output_file
from server_toolkit.commands.progress import interrupt_on_sigterm, show_progress
from server_toolkit.errors import ConfigError

if TYPE_CHECKING:
    from server_toolkit.benchmark.robustness import BenchmarkPlan

CARRY_ON = 75  # sysexits.h: a temporary failure, try again

benchmark = typer.Typer(
    help="Measure what the method is worth beside its controls.", no_args_is_help=True
)


@benchmark.callback()
def _group() -> None:
    """Keep `robustness` a command of its own while it is the only one."""


def register(app: typer.Typer) -> None:
    """Add the group to the command line."""
    app.add_typer(benchmark, name="benchmark")


@benchmark.command()
def robustness(
    *,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Directory with the data sets' official files, or with a folder for each; "
            "digits and folder:PATH need none.",
            exists=True,
            file_okay=False,
            metavar="DIR",
        ),
    ] = None,
    preset: Annotated[
        str, typer.Option(help="small (2 CPU cores, two hours), paper (a GPU) or tiny (a test).")
    ] = "small",
    out: Annotated[
        Path,
        typer.Option(
            help="Where finished work is kept; the same command takes it up again.", metavar="DIR"
        ),
    ] = Path("benchmark-output"),
    json_file: JsonFileOption = None,
    report: Annotated[
        Path | None,
        typer.Option(help="Write the result as a page to this file.", metavar="FILE.html"),
    ] = None,
    datasets: Annotated[
        list[str] | None,
        typer.Option(
            "--datasets",
            "--dataset",
            help="mnist, fashion_mnist, cifar10, digits or folder:PATH; several with commas or "
            "by repeating the option. Default: the preset's.",
            metavar="NAMES",
        ),
    ] = None,
    epsilon: Annotated[
        list[float] | None,
        typer.Option(
            help="Attack size for digits (default 0.1) and folder:PATH (default 8/255), l∞ on "
            "pixels in [0, 1]; repeat it for several. The named data sets have fixed ones.",
            min=0,
            max=1,
        ),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Whole numbers with commas.", metavar="SEEDS")
    ] = None,
    arms: Annotated[
        str | None,
        typer.Option(
            help="Arms with commas; fedavg and the controls of what is named are added.",
            metavar="ARMS",
        ),
    ] = None,
    partitions: Annotated[
        str | None, typer.Option(help="iid and dirichlet:ALPHA, with commas.", metavar="NAMES")
    ] = None,
    server_images: Annotated[
        str | None,
        typer.Option(help="Sizes of the server set, images a class, with commas.", metavar="SIZES"),
    ] = None,
    budget_s: Annotated[
        float | None,
        typer.Option(
            help=f"Stop after about this many seconds with exit code {CARRY_ON}; run again to "
            "carry on.",
            min=1,
            metavar="S",
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=0, help="Processes; 0: one a CPU core, or one for a GPU.")
    ] = 0,
    threads: ThreadsOption = 1,
    device: DeviceOption = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show how much work there is, and do none.")
    ] = False,
) -> None:
    """Compare the arms under AutoAttack: methods, controls, and what they lie between.

    Every arm shares the federated runs it can share. Finished pieces of work are kept under --out,
    so a run that was killed, or that used up --budget-s, carries on when the command is given
    again. Exit codes: 0 all done, 1 some pieces failed (the result says which), 75 time used up.
    """
    from server_toolkit.benchmark.presets import PRESETS, with_choices
    from server_toolkit.benchmark.robustness import plan_benchmark, run_benchmark

    interrupt_on_sigterm()
    check_output_file(report)
    if preset not in PRESETS:
        raise ConfigError(f"no preset is called {preset!r}; choose {', '.join(PRESETS)}")
    chosen = with_choices(
        PRESETS[preset],
        datasets=tuple(_dataset_names(datasets or [])),
        seeds=_numbers("--seeds", seeds),
        arms=_names(arms),
        partitions=_names(partitions),
        server_images=_numbers("--server-images", server_images),
    )
    torch_device = choose_device(device, threads=threads)
    plan = plan_benchmark(chosen, directory=data, epsilons=tuple(epsilon or ()))
    if dry_run:
        _show_plan(plan, out)
        return
    with show_progress("benchmark", guess_time=False) as progress:
        run = run_benchmark(
            plan,
            work_directory=out,
            progress=progress,
            workers=workers or (len(os.sched_getaffinity(0)) if torch_device == "cpu" else 1),
            threads=threads,
            device=torch_device,
            budget_s=budget_s,
        )
    if json_file is not None:
        json_file.write_text(json.dumps(run.document, indent=1))
    if report is not None:
        from server_toolkit.report.benchmark_page import render_benchmark_page
        from server_toolkit.report.benchmark_pictures import pictures_of

        report.write_text(render_benchmark_page(run.document, pictures_of(run)))
    _show_result(run.document)
    if not run.complete:
        typer.echo("time is up: run the same command again to carry on", err=True)
        raise typer.Exit(CARRY_ON)
    if run.document["failures"]:
        raise typer.Exit(1)


def _dataset_names(given: list[str]) -> list[str]:
    """Return the names; a folder's path may have commas."""
    names: list[str] = []
    for text in given:
        names += [text] if text.startswith("folder:") else _names(text)
    return names


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(p.strip() for p in (text or "").split(",") if p.strip()))


def _numbers(option: str, text: str | None) -> tuple[int, ...]:
    numbers = []
    for name in _names(text):
        if not name.isdecimal():
            raise ConfigError(f"{option}: {name!r:.40} is no whole number")
        numbers.append(int(name))
    return tuple(numbers)


def _show_plan(plan: BenchmarkPlan, out: Path) -> None:
    from server_toolkit.benchmark.robustness import pieces_left
    from server_toolkit.benchmark.store import Store

    for kind, done, total in pieces_left(plan, Store(out)):
        typer.echo(f"{kind:12} {done:5} of {total:5} done")
    for remark in plan.remarks:
        typer.echo(remark)


def _show_result(document: dict[str, Any]) -> None:
    """Print warnings, a table for every place, and the goals."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for warning in document["warnings"]:
        console.print(f"WARNING: {warning}", style="bold red", markup=False, soft_wrap=True)
    places: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in document["rows"]:
        key = (row["dataset"], row["network"], row["partition"], row["epsilon"])
        places.setdefault(key, []).append(row)
    for (dataset, network, partition, epsilon), rows in places.items():
        place = f"{dataset}, {network}, {partition}, ε = {epsilon:.4g}"
        table = Table(title=f"{place}: accuracy, %")
        table.add_column("arm (real images a class)", no_wrap=True)
        for heading in ("clean", "PGD", "AutoAttack", "recovery", "devices"):
            table.add_column(heading, justify="right")
        for row in rows:
            table.add_row(row["title"], *(_cell(m) for m in row["measures"].values()), *_ends(row))
        console.print(table)
    for goal in document["goals"]:
        line = f"{goal['status'].upper()}: {goal['name']}; {goal['summary']}"
        console.print(line, markup=False, soft_wrap=True)


def _cell(measure: dict[str, Any]) -> str:
    pooled = measure["pooled"]
    interval = f"{100 * pooled['low']:.0f}–{100 * pooled['high']:.0f}"
    return f"{100 * measure['mean']:.1f} [dim]{interval}[/dim]"


def _ends(row: dict[str, Any]) -> tuple[str, str]:
    share, cost = row["recovery"], row["cost"]["relative_to_fedavg"]["passes"]
    return (
        "–" if share is None or share["mean"] is None else f"{share['mean']:.2f}",
        "–" if not cost else f"{cost:.1f}×",
    )
