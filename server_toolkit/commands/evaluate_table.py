"""How `server-toolkit evaluate` shows its results on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from server_toolkit.robust.evaluation.accuracy import Accuracy
    from server_toolkit.stages.assess import Result


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


def show_assessment(result: Result) -> None:
    """Print a table for each attack size, then the flags and what to conclude."""
    from rich.console import Console

    from server_toolkit.report.robustness_words import (
        comparison_sentence,
        conclusion,
        finding,
        missing_attacks,
    )

    console = Console()
    for index in range(len(result.settings.epsilons)):
        console.print(_attack_table(result, index))
    judge = result.judge
    where = f"judged on {len(judge.labels)} images of {judge.name}"
    console.print(where, markup=False, soft_wrap=True)
    if judge.warning:
        warning = f"WARNING: {judge.warning}"
        console.print(warning, style="bold red", markup=False, soft_wrap=True)
    for model in result.models:
        console.print(f"\n{model.title}", style="bold", markup=False, soft_wrap=True)
        for judgement in model.assessment.judgements:
            console.print(finding(judgement), markup=False, soft_wrap=True)
        console.print(conclusion(model), markup=False, soft_wrap=True)
        for flag in model.assessment.flags:
            style = "red" if flag.level == "doubt" else "yellow"
            line = f"{flag.level.upper()} {flag.name}: {flag.sentence}"
            console.print(line, style=style, markup=False, soft_wrap=True)
        if model.assessment.source != "white_box":
            console.print(model.assessment.how, markup=False, soft_wrap=True)
    if missing := missing_attacks(result.models):
        console.print(f"\n{missing}", style="yellow", markup=False, soft_wrap=True)
    for comparison in result.comparisons:
        console.print(comparison_sentence(comparison), markup=False, soft_wrap=True)


def _attack_table(result: Result, index: int) -> Table:
    from rich.markup import escape
    from rich.table import Table

    from server_toolkit.report.robustness_words import attack_rows, attack_title, weakest
    from server_toolkit.robust.evaluation.accuracy import overall

    judgements = [model.assessment.judgements[index] for model in result.models]
    norm = "l∞" if result.settings.norm == "linf" else "l2"
    table = Table(title=f"accuracy at ε = {judgements[0].epsilon:.3g} ({norm}), % [95 % interval]")
    table.add_column("attack")
    for model in result.models:
        table.add_column(escape(model.title), justify="right")
    for name, source in attack_rows(judgements):
        ran = [{o.name: overall(o.correct) for o in j.outcomes}.get(name) for j in judgements]
        table.add_row(attack_title(name, source), *map(_share, ran))
    table.add_section()
    table.add_row("all together", *(_share(overall(j.robust)) for j in judgements), style="bold")
    worst = [weakest(j) for j in judgements]
    table.add_row("worst class", *(f"{_share(part)} (class {c})" for c, part in worst))
    return table


def _share(accuracy: Accuracy | None) -> str:
    return "–" if accuracy is None else _cell(accuracy.to_dict())
