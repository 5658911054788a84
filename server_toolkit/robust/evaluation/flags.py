"""Why a number may be wrong: rules over what was measured, each with a name and a sentence.

The thresholds say what chance and an attack's ordinary slack explain; docs/evaluation.md has them
all, with what to do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from server_toolkit.robust.evaluation.accuracy import Mask, by_class, overall
from server_toolkit.robust.evaluation.judgement import CLEAN, EXCHANGED, Judgement
from server_toolkit.robust.evaluation.plan import is_standard
from server_toolkit.robust.evaluation.probes import LONG_STEPS, RESTARTS, Probes

Level = Literal["doubt", "caution"]
"""doubt: robust accuracy is probably lower than it looks; caution: it says less than it seems."""

SLACK = 0.01  # share of the judged images that a weaker attack may break by luck
SEARCH_SLACK = 0.05  # what more starts or steps may find on a sound model
SCALE_GAIN = 0.10
HALF_WIDTH = 0.05
CLASS_IMAGES = 20
FEW = 3  # images of the probed ones that prove nothing


@dataclass(frozen=True)
class Flag:
    """One reason for doubt or caution."""

    name: str
    level: Level
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the rules look at, all of one model and one set of images.

    `curve` maps epsilon to the mask of what stood there. `agreement` is the share of images on
    which model and surrogate answer alike, `trained_epsilon` what the model was hardened with.
    """

    judgements: Sequence[Judgement]
    curve: Mapping[float, Mask]
    probes: Probes
    agreement: float | None = None
    trained_epsilon: float | None = None


def find_flags(evidence: Evidence) -> tuple[Flag, ...]:
    """Return every flag that the evidence raises, doubts first."""
    found = [
        *_inputs(evidence.probes),
        *_outputs(evidence.probes),
        *_gradients(evidence),
        *(flag for judgement in evidence.judgements for flag in _attacks(judgement)),
        *_rising(evidence.curve),
        *_rising({j.epsilon: j.robust for j in evidence.judgements}),
        *_surrogate(evidence),
        *_images(evidence),
        *_training(evidence),
    ]
    return tuple(sorted(dict.fromkeys(found), key=lambda flag: flag.level != "doubt"))


def _inputs(p: Probes) -> Iterator[Flag]:
    name, accuracy = max(p.clean_at_other_scale.items(), key=lambda item: item[1])
    if accuracy > p.clean + SCALE_GAIN:
        yield Flag(
            "wrong_input_scale",
            "doubt",
            f"Clean accuracy is {_pc(p.clean)} on images in [0, 1] but {_pc(accuracy)} on images "
            f"{name}: the model was trained on those. Put the normalisation inside the model, "
            "else epsilon means another size.",
        )
    if p.brightest < 0.1:
        yield Flag(
            "dark_images",
            "doubt",
            f"The brightest pixel of all images is {p.brightest:.2g}; images divided by 255 twice "
            "look like that, and epsilon is huge beside them.",
        )


def _outputs(p: Probes) -> Iterator[Flag]:
    if p.changed_when_repeated:
        yield Flag(
            "random_outputs",
            "doubt",
            f"The same images give other outputs the next time ({_pc(p.changed_when_repeated)} of "
            "them): dropout, noise or another random part is on. Attacks that expect one answer "
            "miss; judge the model with it switched off, or average over many answers.",
        )
    elif p.changed_in_other_batch:
        yield Flag(
            "depends_on_batch",
            "doubt",
            f"{_pc(p.changed_in_other_batch)} of the images give other outputs alone than beside "
            "other images: batch statistics are in use. Put the model into evaluation mode.",
        )
    if p.look_like_probabilities:
        yield Flag(
            "probabilities",
            "doubt",
            "The outputs are nonnegative and add up to one, so they look like probabilities. "
            "Attacks need the logits before the softmax: a second softmax flattens the gradients.",
        )


def _gradients(e: Evidence) -> Iterator[Flag]:
    p, g = e.probes, e.probes.gradients
    if g is None:
        return
    strong = is_standard({o.attack for o in e.judgements[0].outcomes})
    if g.zero_margin > SLACK:
        yield Flag(
            "zero_gradients",
            "doubt",
            f"At {_pc(g.zero_margin)} of the images the outputs do not change with the image at "
            "all: some operation has no slope, such as rounding. Every attack that follows "
            "gradients stands still there; only Square and transfer count.",
        )
    elif g.zero > SLACK:
        yield Flag(
            "zero_gradients",
            "caution" if strong else "doubt",
            f"At {_pc(g.zero)} of the images the gradient of the cross-entropy is zero, though "
            "that of the outputs is not: outputs so large that the softmax saturates. FGSM and PGD "
            "stand still there; C&W and AutoAttack, which use other losses, count.",
        )
    # More effort of the same kind may find a little; beyond AutoAttack it should find nothing.
    slack = SLACK if strong else SEARCH_SLACK
    for fell, name, what in (
        (g.fell_to_starts, "restarts_matter", f"{RESTARTS} more random starts of PGD"),
        (g.fell_to_steps, "more_steps_matter", f"PGD of {LONG_STEPS} steps"),
    ):
        if fell > slack and round(fell * g.images) >= FEW:
            yield Flag(
                name,
                "doubt",
                f"{what} break {_pc(fell)} more of the images, all of which the attacks tried had "
                "left: the loss is rugged or they stopped early, and more effort finds more.",
            )
    if g.at_large_epsilon > p.guessing + SEARCH_SLACK:
        yield Flag(
            "survives_large_epsilon",
            "doubt",
            f"At epsilon {g.large_epsilon:g} every image can be turned into one grey square, so no "
            f"more than about {_pc(p.guessing)} can stand. Yet {_pc(g.at_large_epsilon)} "
            "do: the attacks fail on this model, at smaller sizes too.",
        )


def _attacks(j: Judgement) -> Iterator[Flag]:
    count = len(j.labels)
    at = f"at epsilon {j.epsilon:g}"
    ran = {outcome.name: outcome for outcome in j.outcomes}
    followed = [o.correct for o in j.outcomes if o.source == "white_box"]
    if followed:
        left: Mask = np.all([o.correct for o in j.outcomes if _follows_gradients(o.attack)], axis=0)
        by_square = np.zeros(count, bool)
        if "square" in ran:
            by_square |= j.correct(CLEAN) & ~ran["square"].correct
        if "autoattack" in ran:  # Square is its last part and sees what gradients left
            last = ran["autoattack"].broken_by["square"]
            left = left & (ran["autoattack"].correct | last)
            by_square |= last
        missed = int((by_square & left).sum())
        if missed > max(1, SLACK * count):
            yield Flag(
                "square_beats_gradients",
                "doubt",
                f"Square, which sees outputs only, breaks {missed} of {count} images {at} that all "
                "attacks with gradients left: the gradients lead astray.",
            )
        transfers = [o.correct for o in j.outcomes if o.source == "transfer"]
        own: Mask = np.all(followed, axis=0)
        missed = int((own & ~np.all(transfers, axis=0)).sum()) if transfers else 0
        if missed > max(1, SLACK * count):
            yield Flag(
                "transfer_beats_gradients",
                "doubt",
                f"Images made on another model break {missed} of {count} images {at} that the "
                "model's own gradients left: the gradients lead astray.",
            )
    if "fgsm" in ran and "pgd" in ran:
        lead = int(ran["pgd"].correct.sum()) - int(ran["fgsm"].correct.sum())
        if lead > max(1, SLACK * count):
            yield Flag(
                "one_step_beats_many",
                "doubt",
                f"FGSM, one step, breaks {lead} of {count} images more than PGD {at}, though PGD "
                "could take the same step: the gradients lead astray.",
            )


def _rising(stood: Mapping[float, Mask]) -> Iterator[Flag]:
    sizes = sorted(stood)
    for smaller, larger in pairwise(sizes):
        rise = int(stood[larger].sum()) - int(stood[smaller].sum())
        if rise > max(1, SLACK * len(stood[larger])):
            yield Flag(
                "rises_with_epsilon",
                "doubt",
                f"{rise} images more stand at epsilon {larger:g} than at {smaller:g}, though the "
                "larger ball holds the smaller one: the attack misses what is there.",
            )
            return


def _surrogate(e: Evidence) -> Iterator[Flag]:
    if e.agreement is not None and e.agreement < 1 - SEARCH_SLACK:
        yield Flag(
            "surrogate_disagrees",
            "doubt",
            f"The model that lent its gradients answers {_pc(1 - e.agreement)} of the clean images "
            "otherwise, so it is another model and images made on it may say little. Name the "
            "torch model that this file was exported from with --transfer-from.",
        )


def _images(e: Evidence) -> Iterator[Flag]:
    judgement = e.judgements[0]
    low, high = overall(judgement.robust).interval
    count = len(judgement.labels)
    if (high - low) / 2 > HALF_WIDTH:
        yield Flag(
            "few_images",
            "caution",
            f"{count} images leave the robust accuracy anywhere from {_pc(low)} to {_pc(high)} "
            "(95 %). Judge on more images before comparing.",
        )
    parts = by_class(judgement.robust, judgement.labels, judgement.classes)
    few = [str(c) for c, part in enumerate(parts) if part.count < CLASS_IMAGES]
    if few:
        yield Flag(
            "few_images_in_class",
            "caution",
            f"Fewer than {CLASS_IMAGES} images of class {', '.join(few[:10])}"
            f"{' and others' if len(few) > 10 else ''}: worst-class accuracy says little.",
        )
    clean = judgement.accuracy(CLEAN).value
    chance = 1 / judgement.classes
    if clean < chance + (1 - chance) / 3:
        yield Flag(
            "low_clean_accuracy",
            "caution",
            f"Without any attack the model gets {_pc(clean)} right (guessing {_pc(chance)}). A "
            "model that hardly looks at the image is hard to fool; that is no robustness.",
        )


def _training(e: Evidence) -> Iterator[Flag]:
    sizes = [j.epsilon for j in e.judgements]
    trained = e.trained_epsilon
    if trained is not None and not any(abs(size - trained) < 1e-3 * trained for size in sizes):
        yield Flag(
            "other_epsilon",
            "caution",
            f"The model was hardened at epsilon {trained:g} and is judged at "
            f"{', '.join(f'{size:g}' for size in sizes)}; judge it at {trained:g} too.",
        )


def _follows_gradients(attack: str) -> bool:
    return attack not in (CLEAN, EXCHANGED, "square", "autoattack")


def _pc(share: float) -> str:
    return f"{100 * share:.1f} %"
