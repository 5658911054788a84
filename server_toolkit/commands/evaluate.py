"""`server-toolkit evaluate`: what models and their ONNX files are worth, clean and attacked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server_toolkit.commands.compute import DeviceOption, ThreadsOption, choose_device
from server_toolkit.commands.evaluate_table import show_assessment, show_results
from server_toolkit.commands.options import (
    DEFAULT_CONFIG,
    ConfigOption,
    JsonFileOption,
    check_output_file,
)
from server_toolkit.commands.progress import interrupt_on_sigterm, show_progress
from server_toolkit.errors import ConfigError

if TYPE_CHECKING:
    from server_toolkit.stages.evaluate import Judge
    from server_toolkit.stages.subjects import Subject
    from server_toolkit.stages.workspace import Workspace


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(evaluate)


def evaluate(
    *,
    model: Annotated[
        list[str] | None,
        typer.Argument(
            help="Names of the fleet's models, fedavg, or .safetensors and .onnx files."
        ),
    ] = None,
    name: Annotated[
        list[str] | None, typer.Option(help="A model of the fleet; the same as MODEL.")
    ] = None,
    attacks: Annotated[
        str | None,
        typer.Option(
            help="quick (FGSM, PGD), standard (C&W and complete AutoAttack too), or a list with "
            "commas; default: quick.",
            metavar="ATTACKS",
        ),
    ] = None,
    norm: Annotated[
        str | None, typer.Option(help="linf or l2; default: linf.", metavar="NORM")
    ] = None,
    epsilon: Annotated[
        str | None,
        typer.Option(
            help="Attack sizes such as 0.1,8/255 for pixels in [0, 1]; default: the fleet's "
            "evaluate.epsilons, or what is usual for --dataset.",
            metavar="E[,E...]",
        ),
    ] = None,
    curve: Annotated[
        str | None,
        typer.Option(
            help="Also PGD alone at these sizes; auto chooses them, none leaves it out; default: "
            "auto with --report.",
            metavar="E[,E...]",
        ),
    ] = None,
    on: Annotated[
        str | None,
        typer.Option(
            help="Judge on test_set, server_set or the proxy set of this name; "
            "default: the test set where there is one.",
            metavar="IMAGES",
        ),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Judge on the labelled images of an .npz.", metavar="FILE")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Where the files of --dataset are.", metavar="DIR")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Judge on the test images of mnist, fashion_mnist, cifar10, digits or "
            "folder:PATH.",
            metavar="NAME",
        ),
    ] = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="Judge on so many of the images, drawn by --seed.")
    ] = None,
    network: Annotated[
        Path | None,
        typer.Option(
            help="The network of .safetensors files (.toml, .json or a server.toml); default: "
            "the description beside the file.",
            metavar="FILE",
        ),
    ] = None,
    transfer_from: Annotated[
        str | None,
        typer.Option(
            help="The torch model, name or .safetensors, whose gradients attack .onnx files; "
            "default: the one that a fleet's file was exported from.",
            metavar="MODEL",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of the attacks and of --count; default: 0.")
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Images attacked at once; larger on a GPU; default: 256."),
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option(
            help="Where finished batches are kept, from which an interrupted command carries on; "
            "default: evaluations/kept of the fleet, else the user's cache.",
            metavar="DIR",
        ),
    ] = None,
    json_file: JsonFileOption = None,
    report: Annotated[
        Path | None,
        typer.Option(
            help="Write a page with verdict, curves and adversarial examples.",
            metavar="FILE",
            callback=check_output_file,
        ),
    ] = None,
    threads: ThreadsOption = 0,
    device: DeviceOption = "auto",
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Measure accuracy under attack, with 95 % intervals, and say why a number may be wrong.

    Given only names, it makes the record that `release` asks for: clean, FGSM and PGD accuracy of
    torch, ONNX fp32 and ONNX int8 into evaluations/NAME.json; what is there is not computed again.
    With a file or any option about attacks or images, it attacks each model as told, looks for
    signs of masked gradients and other traps, and writes --json and --report. ONNX files give no
    gradients: they are attacked with images made on the torch model, and with Square.

    For example: evaluate model.safetensors --dataset mnist --data DIR --attacks standard
    --report page.html
    """
    models = list(dict.fromkeys([*(model or []), *(name or [])]))
    if not models:
        raise ConfigError("which model? Give names of the fleet's models or model files")
    if data is not None and dataset is None:
        raise ConfigError(f"--data {data} holds the files of which data set? Give --dataset")
    if sum(choice is not None for choice in (on, images, dataset)) > 1:
        raise ConfigError("choose one of --on, --images and --dataset")
    interrupt_on_sigterm()
    from server_toolkit.stages.subjects import distinctly_named, is_file

    told = (
        attacks, norm, epsilon, curve, images, dataset, count, network, transfer_from, seed,
        batch_size, keep, report,
    )  # fmt: skip
    if all(option is None for option in told) and not any(is_file(m) for m in models):
        _record(_open(config), models, on, json_file, choose_device(device, threads=threads))
        return

    from server_toolkit.robust.evaluation.assess import AssessSettings
    from server_toolkit.robust.evaluation.plan import parse_attacks, parse_norm
    from server_toolkit.stages import assess

    ball = parse_norm(norm or "linf")
    parse_attacks(attacks or "quick", ball)  # a slip shows before the work begins
    needs_fleet = not all(map(is_file, [*models, *([transfer_from] if transfer_from else [])]))
    workspace = _open(config) if needs_fleet or (images is None and dataset is None) else None
    judge = _images(workspace, models, on, images, dataset, data)
    if epsilon is not None:
        sizes = assess.parse_sizes(epsilon, "--epsilon")
        if ball == "linf" and sizes[-1] > 1:
            raise ConfigError(
                f"--epsilon {sizes[-1]:g} is more than any pixel can change; pixels reach from 0 "
                f"to 1, so write {sizes[-1]:g} steps of 255 as {sizes[-1]:g}/255"
            )
    else:
        sizes = assess.default_sizes(judge, ball, workspace)
    lender = None if transfer_from is None else _subjects(workspace, transfer_from, network)[0]
    subjects = distinctly_named(
        [(m, s) for m in models for s in _subjects(workspace, m, network, lender)]
    )
    fitted = assess.fitted(judge, subjects)
    settings = AssessSettings(
        norm=ball,
        epsilons=sizes,
        attacks=attacks or "quick",
        curve=_curve(curve or ("none" if report is None else "auto"), sizes),
        seed=seed or 0,
        batch_size=batch_size or 256,
    )
    judge = assess.drawn(fitted, count or len(fitted.labels), seed=settings.seed)
    torch_device = choose_device(device, threads=threads)
    kept = keep or assess.keep_folder(workspace)
    assessed = []
    for subject in subjects:
        with show_progress(f"{subject.name} {subject.kind}") as progress:
            assessed.append(
                assess.assess_subject(
                    subject,
                    judge,
                    settings,
                    keep=kept,
                    progress=progress,
                    device=torch_device,
                    collect=len(assess.twins(subject, subjects)) > 1,
                )
            )
    assessed = assess.exchanged(assessed, settings, device=torch_device)
    result = assess.summarise(judge, settings, assessed)
    show_assessment(result)
    if json_file is not None:
        json_file.write_text(json.dumps(result.to_dict(), indent=1, allow_nan=False))
    if report is not None:
        from server_toolkit.report.robustness_page import render_robustness_page

        report.write_text(render_robustness_page(result), encoding="utf-8")


def _record(
    workspace: Workspace, models: list[str], on: str | None, json_file: Path | None, device: str
) -> None:
    """Make the records that `release` asks for."""
    from server_toolkit.stages.evaluate import find_judge, run_evaluate

    judge = find_judge(workspace, models, on=on)
    results = []
    for model in models:
        with show_progress(f"evaluate {model}") as progress:
            results.append(
                run_evaluate(workspace, model, judge=judge, progress=progress, device=device)
            )
    show_results(results)
    if json_file is not None:
        json_file.write_text(json.dumps({"evaluations": results}, indent=1))


def _open(config: Path) -> Workspace:
    from server_toolkit.config import load_config
    from server_toolkit.stages.workspace import Workspace

    return Workspace.open(load_config(config))


def _images(
    workspace: Workspace | None,
    models: list[str],
    on: str | None,
    images: Path | None,
    dataset: str | None,
    data: Path | None,
) -> Judge:
    """Return what to judge on; a workspace is there unless images or a data set are named."""
    from server_toolkit.stages.assess import images_of_dataset, images_of_file
    from server_toolkit.stages.evaluate import find_judge
    from server_toolkit.stages.subjects import is_file

    if images is not None:
        return images_of_file(images)
    if dataset is not None:
        return images_of_dataset(dataset, data)
    assert workspace is not None
    return find_judge(workspace, [model for model in models if not is_file(model)], on=on)


def _subjects(
    workspace: Workspace | None, model: str, network: Path | None, lender: Subject | None = None
) -> list[Subject]:
    """Return what a MODEL stands for; a workspace is there unless it is a file."""
    from server_toolkit.stages.subjects import file_subject, fleet_subjects, is_file

    if is_file(model):
        return [file_subject(Path(model), network=network, surrogate=lender)]
    assert workspace is not None
    return fleet_subjects(workspace, model, surrogate=lender)


def _curve(text: str, sizes: tuple[float, ...]) -> tuple[float, ...]:
    from server_toolkit.robust.evaluation.assess import default_curve
    from server_toolkit.stages.assess import parse_sizes

    if text == "none":
        return ()
    return default_curve(sizes) if text == "auto" else parse_sizes(text, "--curve")
