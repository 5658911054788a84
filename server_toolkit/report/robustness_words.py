"""What an evaluation means, in sentences for whoever decides on a release."""

from __future__ import annotations

from collections.abc import Sequence

from server_toolkit.robust.evaluation.accuracy import Accuracy, by_class, overall, worst_class
from server_toolkit.robust.evaluation.assess import Assessment
from server_toolkit.robust.evaluation.compare import Gain
from server_toolkit.robust.evaluation.judgement import CLEAN, EXCHANGED, Judgement
from server_toolkit.robust.evaluation.plan import is_standard
from server_toolkit.stages.assess import Assessed, Comparison

ATTACKS = {
    "clean": ("no attack", "The images as they are."),
    "fgsm": (
        "FGSM",
        "One signed gradient step. Fast and weak: a lower limit of what an attack does.",
    ),
    "pgd": ("PGD", "Many small gradient steps from a random start inside the ball."),
    "cw_linf": ("C&W-l∞", "Gradient steps on the margin between logits, which cannot saturate."),
    "cw_l2": (
        "C&W-l2",
        "Looks for the nearest wrong image in l2. In the l∞ norm an image counts as broken only "
        "where that image happens to lie in the ball; read the distances instead.",
    ),
    "apgd_ce": ("APGD-CE", "Gradient steps on the cross-entropy that choose their own size."),
    "apgd_dlr": ("APGD-DLR", "The same on a loss that the scale of the logits cannot hide."),
    "apgd_t": ("APGD-T", "The same towards each of the nine likeliest wrong classes."),
    "fab_t": ("FAB-T", "Walks along the decision boundary to the nearest wrong image."),
    "square": (
        "Square",
        "Random squares, from outputs alone: what an outsider with queries can do.",
    ),
    "autoattack": (
        "AutoAttack",
        "APGD-CE, APGD-T, FAB-T and Square, each on what the ones before left. The usual standard.",
    ),
    EXCHANGED: (
        "images of its other files",
        "Images that turned another file of the same model, shown to this one: files of one model "
        "compute nearly the same, so what is known of one is no secret for the other.",
    ),
}
_STRONG_PARTS = {"apgd_dlr", "apgd_t", "fab_t"}
SOURCES = {
    "none": "",
    "white_box": "",
    "scores": "outputs only",
    "transfer": "by transfer",
}


def percent(accuracy: Accuracy) -> str:
    """Return an accuracy with its interval: `61.2 % (58.1 to 64.2)`."""
    low, high = accuracy.interval
    return f"{100 * accuracy.value:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def points(gain: Gain) -> str:
    """Return a gain with its interval, in points: `+12.1 points (+8.0 to +16.2)`."""
    value, low, high = (100 * x for x in (gain.value, gain.low, gain.high))
    return f"{value:+.1f} points ({low:+.1f} to {high:+.1f})"


def attack_title(name: str, source: str) -> str:
    """Return an attack's name as people write it, with what it knew where that is not all."""
    attack = name.removesuffix("_transfer")
    title, _ = ATTACKS[attack]
    knew = "" if attack == EXCHANGED else SOURCES[source]
    return f"{title} ({knew})" if knew else title


def attack_rows(judgements: Sequence[Judgement]) -> list[tuple[str, str]]:
    """Return name and source of every attack that was run on any, what was exchanged last."""
    ran = dict.fromkeys((o.name, o.source, o.attack) for j in judgements for o in j.outcomes)
    return [(name, source) for name, source, _ in sorted(ran, key=lambda row: row[2] == EXCHANGED)]


def weakest(judgement: Judgement) -> tuple[int, Accuracy]:
    """Return the class that keeps the least under all attacks together, and what it keeps."""
    parts = by_class(judgement.robust, judgement.labels, judgement.classes)
    worst = worst_class(parts)
    return worst, parts[worst]


def finding(judgement: Judgement) -> str:
    """Say what an attacker takes from a model at one size, and what its weakest class keeps."""
    worst, kept = weakest(judgement)
    norm = "l∞" if judgement.norm == "linf" else "l2"
    clean, robust = judgement.accuracy(CLEAN), overall(judgement.robust)
    lost = 100 * (clean.correct - robust.correct) / max(1, clean.correct)
    return (
        f"At ε = {judgement.epsilon:.3g} ({norm}) an attacker takes {lost:.0f} % of its right "
        f"answers: it gets {percent(robust)} right against every attack tried, {percent(clean)} "
        f"without attack. Its weakest class, {worst}, keeps {percent(kept)}."
    )


def conclusion(model: Assessed) -> str:
    """Say whether the numbers of this model can be relied on, and for what."""
    assessment = model.assessment
    doubts = [flag for flag in assessment.flags if flag.level == "doubt"]
    if doubts:
        reasons = (
            "one reason below suggests"
            if len(doubts) == 1
            else f"{len(doubts)} reasons below suggest"
        )
        return (
            f"Do not decide on these numbers: {reasons} that the true accuracy under "
            "attack is lower, or that it was not measured at all. Remove the cause and judge again."
        )
    ran = _attacks_of(assessment)
    if assessment.source == "scores":
        return "A loose upper bound: only Square was possible. Good enough to reject a model."
    if assessment.source == "transfer":
        return (
            "No reason to doubt these numbers was found, but they are upper bounds: an attacker "
            "who rebuilds the gradients of this file may do better."
        )
    if not is_standard(ran):
        return "No reason to doubt these numbers was found, within what was tried."
    return (
        "No reason to doubt these numbers was found: the attacks were the usual standard, in full "
        "knowledge of the model. They say nothing about larger changes or other kinds, such as "
        "rotation or patches."
    )


def missing_attacks(models: Sequence[Assessed]) -> str | None:
    """Say once for all models if they were attacked with less than the usual standard.

    Only of models whose numbers could be relied on otherwise, and whose gradients were followed:
    the others are told more.
    """
    for model in models:
        assessment = model.assessment
        ran = _attacks_of(assessment)
        doubted = any(flag.level == "doubt" for flag in assessment.flags)
        if assessment.source != "white_box" or doubted or is_standard(ran):
            continue
        what = "a part of AutoAttack was" if ran & _STRONG_PARTS else "weak attacks were"
        names = ", ".join(title for attack, (title, _) in ATTACKS.items() if attack in ran)
        return (
            f"Only {what} tried ({names}): expect less under AutoAttack, and judge with --attacks "
            "standard before a release."
        )
    return None


def _attacks_of(assessment: Assessment) -> set[str]:
    return {o.attack for j in assessment.judgements for o in j.outcomes} - {CLEAN, EXCHANGED}


def comparison_sentence(c: Comparison) -> str:
    """Say what a model gains over the baseline and loses without attack, and if chance explains it.

    The intervals are paired, image by image.
    """
    verdict = (
        "The difference under attack is more than chance."
        if c.robust.beyond_chance
        else "These images cannot tell the difference under attack from chance."
    )
    return (
        f"At ε = {c.epsilon:.3g}, {c.title} beside {c.baseline}: {points(c.robust)} under attack, "
        f"{points(c.clean)} without. {verdict}"
    )
