"""The page about one evaluation under attack: what holds, how sure that is, what breaks."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from server_toolkit.report.figures import (
    COLOURS,
    Point,
    as_svg,
    new_axes,
    one_image,
    robustness_by_epsilon,
)
from server_toolkit.report.page import document, escaped, point_cell
from server_toolkit.report.robustness_words import (
    ATTACKS,
    attack_rows,
    attack_title,
    comparison_sentence,
    conclusion,
    finding,
    missing_attacks,
    weakest,
)
from server_toolkit.robust.evaluation.accuracy import Accuracy, by_class, overall
from server_toolkit.robust.evaluation.flags import Flag
from server_toolkit.robust.evaluation.judgement import CLEAN, Example, Judgement, Outcome
from server_toolkit.stages.assess import Assessed, Result

EXAMPLES = 8

_STYLE = """
section > .card.verdict { border-left: 6px solid #0072B2; }
section > .card.doubt { border-left-color: #D55E00; }
section > .card.caution { border-left-color: #E69F00; }
 .card + .card { margin-top: .8rem; }
.flag { margin: .5rem 0 0; padding-left: 1rem; } .flag b { font-family: ui-monospace, monospace; }
.doubt .flag.doubt b, .flag.doubt b { color: #a63c00; } .flag.caution b { color: #8a5d00; }
.examples { display: grid; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr));
  gap: 1rem; }
h3 { margin: 0 0 .4rem; font-size: 1.05rem; } figure { margin: 0; }
figure div { display: flex; gap: 4px; } figure img { width: 33%; }
figcaption { font-size: .85rem; color: var(--soft); }
code { font-size: .85rem; word-break: break-all; }
"""


def render_robustness_page(result: Result) -> str:
    """Return the page as one HTML document that needs no other file."""
    title = "Accuracy under attack"
    sizes = ", ".join(f"{size:.3g}" for size in result.settings.epsilons)
    body = f"""
<h1>{title}</h1>
<p class="lead">{len(result.models)} {"model" if len(result.models) == 1 else "models"} on
{len(result.judge.labels)} images of {escaped(result.judge.name)}; each image may be changed by at
most ε = {sizes} ({_norm(result)}, pixels in [0, 1]). Ranges are 95 % intervals.</p>
{_warning(result)}
<section><h2>What to conclude</h2>
<p class="soft">The edge says how far the numbers can be relied on, not how good the model is: blue,
no reason to doubt them; yellow, with caution; orange, not yet.</p>
{_missing_attacks(result)}
{"".join(_verdict(model) for model in result.models)}
{_comparisons(result)}</section>
{"".join(_table(result, index) for index in range(len(result.settings.epsilons)))}
{_curves(result)}
<section><h2>Class by class</h2>{"".join(_classes(model) for model in result.models)}</section>
<section><h2>What broke it</h2>{"".join(_examples(result, model) for model in result.models)}
</section>
{_autoattack(result)}
<section><h2>What was tried</h2><div class="card">{_glossary(result)}</div></section>
<section><h2>How to repeat this</h2><div class="card">{_settings(result)}</div></section>
"""
    return document(title, body, style=_STYLE)


def _norm(result: Result) -> str:
    return "l∞" if result.settings.norm == "linf" else "l2"


def _warning(result: Result) -> str:
    text = result.judge.warning
    return f'<div class="card verdict doubt">{escaped(text)}</div>' if text else ""


def _missing_attacks(result: Result) -> str:
    text = missing_attacks(result.models)
    return f'<div class="card verdict caution">{escaped(text)}</div>' if text else ""


def _verdict(model: Assessed) -> str:
    flags = model.assessment.flags
    level = flags[0].level if flags else "fine"  # doubts come first
    findings = "".join(f"<p><b>{escaped(finding(j))}</b></p>" for j in model.assessment.judgements)
    reliance = f"<p>{escaped(conclusion(model))}</p>{''.join(map(_flag, flags))}"
    # Where there is doubt, it is read before any number.
    sentences = reliance + findings if level == "doubt" else findings + reliance
    return (
        f'<div class="card verdict {level}"><h3>{escaped(model.title)}</h3>'
        f"{sentences}"
        f'<p class="soft">{escaped(model.assessment.how)}</p></div>'
    )


def _flag(flag: Flag) -> str:
    return (
        f'<p class="flag {flag.level}"><b>{escaped(flag.name)}</b> ({flag.level}): '
        f"{escaped(flag.sentence)}</p>"
    )


def _comparisons(result: Result) -> str:
    if not result.comparisons:
        return ""
    sentences = "".join(f"<li>{escaped(comparison_sentence(c))}</li>" for c in result.comparisons)
    return f'<div class="card"><h3>Side by side</h3><ul>{sentences}</ul></div>'


def _table(result: Result, index: int) -> str:
    """Return the accuracies at one epsilon: a row an attack, a column a model."""
    judgements = [model.assessment.judgements[index] for model in result.models]
    rows = []
    for name, source in attack_rows(judgements):
        ran = [{o.name: o for o in j.outcomes}.get(name) for j in judgements]
        cells = "".join(f"<td>{'–' if o is None else _cell(o)}</td>" for o in ran)
        rows.append(f"<tr><td>{escaped(attack_title(name, source))}</td>{cells}</tr>")
    together = "".join(f"<td>{point_cell(_point(overall(j.robust)))}</td>" for j in judgements)
    worst = "".join(
        f"<td>{point_cell(_point(part))}<small>, class {c}</small></td>"
        for c, part in map(weakest, judgements)
    )
    heads = "".join(f"<th>{escaped(model.title)}</th>" for model in result.models)
    return (
        f"<section><h2>Accuracy at ε = {judgements[0].epsilon:.3g}</h2>"
        f'<div class="card scroll"><table><thead><tr><th>attack</th>{heads}</tr></thead><tbody>'
        f"{''.join(rows)}<tr class='main'><td>all together</td>{together}</tr>"
        f"<tr><td>worst class</td>{worst}</tr></tbody></table></div></section>"
    )


def _cell(outcome: Outcome) -> str:
    text = point_cell(_point(overall(outcome.correct)))
    found = outcome.distance_percentiles.get("p50")
    return text if found is None else f"{text}<br><small>median l2 distance {found:.2g}</small>"


def _curves(result: Result) -> str:
    if not result.settings.curve:
        return ""
    attack = ATTACKS[result.models[0].assessment.curve_attack][0]
    curves = {
        model.title: {size: _point(overall(mask)) for size, mask in model.assessment.curve.items()}
        for model in result.models
    }
    figure = robustness_by_epsilon(
        curves, attack=attack, norm=_norm(result), marked=result.settings.epsilons
    )
    return (
        "<section><h2>Accuracy over the size of the attack</h2>"
        f'<div class="card">{figure}<p class="soft">{attack} alone: an upper bound of the '
        "numbers in the tables. A sound model falls without rising and ends near zero; dotted "
        "lines are the sizes judged.</p></div></section>"
    )


def _classes(model: Assessed) -> str:
    """Return bars: for every class its clean accuracy and what stands against all attacks."""
    judgement = model.assessment.judgements[-1]
    clean = by_class(judgement.correct(CLEAN), judgement.labels, judgement.classes)
    robust = by_class(judgement.robust, judgement.labels, judgement.classes)
    figure, axes = new_axes("class", "accuracy, %")
    places = np.arange(judgement.classes)
    axes.bar(places, [100 * a.value for a in clean], color="#d8dce2", label="without attack")
    values = np.array([100 * a.value for a in robust])
    ends = 100 * np.array([a.interval for a in robust]).T
    axes.bar(
        places, values, width=0.55, color=COLOURS[0], label="against all attacks",
        yerr=np.abs(ends - values), ecolor="#16202c", capsize=2, error_kw={"lw": 1},
    )  # fmt: skip
    axes.set_ylim(0, 118)  # room for the legend
    axes.set_yticks(range(0, 101, 20))
    axes.set_xticks(places if judgement.classes <= 20 else places[:: judgement.classes // 10])
    axes.legend(frameon=False, loc="upper right", ncols=2)
    return (
        f'<div class="card"><h3>{escaped(model.title)}, ε = {judgement.epsilon:.3g}</h3>'
        f"{as_svg(figure)}</div>"
    )


def _examples(result: Result, model: Assessed) -> str:
    judgement = model.assessment.judgements[-1]
    outcome = _strongest(judgement)
    if outcome is None:
        return f'<div class="card"><h3>{escaped(model.title)}</h3><p>Nothing broke.</p></div>'
    figures = []
    for example in _varied(outcome.examples, judgement):
        original = result.judge.images[example.index]
        change = example.adversarial - original
        largest = float(np.abs(change).max())
        alt = escaped(f"{judgement.labels[example.index]} taken for {example.predicted}")
        pictures = (original, example.adversarial, 0.5 + change / (2 * max(largest, 1e-9)))
        shown = "".join(
            f'<img alt="{alt}" src="{one_image(picture, scale=_scale(original))}">'
            for picture in pictures
        )
        figures.append(
            f"<figure><div>{shown}</div><figcaption>{judgement.labels[example.index]} taken for "
            f"{example.predicted}; change × {0.5 / max(largest, 1e-9):.0f}</figcaption></figure>"
        )
    title = attack_title(outcome.name, outcome.source)
    return (
        f'<div class="card"><h3>{escaped(model.title)}: {escaped(title)} at ε = '
        f'{judgement.epsilon:.3g}</h3><p class="soft">Original, attacked image, and what was '
        "changed, amplified around grey. The first number is the true class, the second the "
        f'answer to the attacked image.</p><div class="examples">{"".join(figures)}</div></div>'
    )


def _strongest(judgement: Judgement) -> Outcome | None:
    """Return the attack that left the fewest images, of those with an example to show."""
    shown = [outcome for outcome in judgement.outcomes if outcome.examples]
    return min(shown, key=lambda outcome: overall(outcome.correct).value, default=None)


def _varied(examples: Sequence[Example], judgement: Judgement) -> list[Example]:
    """Return a few examples, of as many classes as possible."""
    seen: dict[int, int] = {}
    turns: list[tuple[int, int]] = []
    for example in examples:
        label = int(judgement.labels[example.index])
        turns.append((seen.setdefault(label, 0), label))
        seen[label] += 1
    order = sorted(range(len(examples)), key=turns.__getitem__)
    return [examples[i] for i in order[:EXAMPLES]]


def _scale(image: npt.NDArray[np.float32]) -> int:
    return max(1, 96 // int(image.shape[-1]))


def _autoattack(result: Result) -> str:
    """Return how many images stood after each part of AutoAttack."""
    rows, parts = [], []
    for model in result.models:
        for judgement in model.assessment.judgements:
            for outcome in judgement.outcomes:
                if outcome.left_after:
                    parts = list(outcome.left_after)
                    cells = "".join(f"<td>{n}</td>" for n in outcome.left_after.values())
                    rows.append(
                        f"<tr><td>{escaped(model.title)}, ε = {judgement.epsilon:.3g}</td>"
                        f"<td>{judgement.accuracy(CLEAN).correct}</td>{cells}</tr>"
                    )
    if not rows:
        return ""
    heads = "".join(f"<th>{escaped(part)}</th>" for part in parts)
    return (
        "<section><h2>AutoAttack, part by part: images that still stand</h2>"
        '<div class="card scroll"><table><thead><tr><th>model</th><th>before</th>'
        f"{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def _glossary(result: Result) -> str:
    ran = dict.fromkeys(
        o.attack for m in result.models for j in m.assessment.judgements for o in j.outcomes
    )
    items = "".join(
        f"<li><b>{escaped(ATTACKS[attack][0])}</b>: {escaped(ATTACKS[attack][1])}</li>"
        for attack in ran
    )
    return (
        f"<ul>{items}</ul><p>An image counts as right under an attack if the model answers both "
        "the clean and the attacked image rightly; “all together” asks that of every attack at "
        "once. The attacker knows the model and its weights, unless a column says otherwise.</p>"
    )


def _settings(result: Result) -> str:
    settings = result.settings
    files = "".join(
        f"<li>{escaped(model.title)}: <code>{model.subject.sha256}</code></li>"
        for model in result.models
    )
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(result.created_at_s))
    return (
        f"<p>{when}; attacks {escaped(settings.attacks)}, seed {settings.seed}, batches of "
        f"{settings.batch_size}, PGD with {settings.steps} steps of ε/4, Square with "
        f"{settings.square_queries} queries. Images: {escaped(result.judge.name)}, sha256 <code>"
        f"{result.judge.sha256}</code>. Models by sha256:</p><ul>{files}</ul>"
    )


def _point(accuracy: Accuracy) -> Point:
    return accuracy.value, *accuracy.interval
