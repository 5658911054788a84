"""The page says what to conclude, and never more than was measured."""

import re

import numpy as np
import pytest

from models import ModelSpec
from server_toolkit.report.robustness_page import render_robustness_page
from server_toolkit.report.robustness_words import (
    comparison_sentence,
    conclusion,
    finding,
    missing_attacks,
)
from server_toolkit.robust.evaluation.assess import AssessSettings
from server_toolkit.stages.assess import assess_subject, exchanged, summarise
from server_toolkit.stages.evaluate import Judge
from server_toolkit.stages.subjects import Subject
from tests.server_toolkit.robust.evaluation.networks import grey, threshold_model

SHAPE = ModelSpec(channels=1, image_size=8, classes=2, mean=(0.0,), std=(1.0,))
LEVELS = np.linspace(0.02, 0.98, 48)
JUDGE = Judge("file", "<levels>", "0" * 64, grey(LEVELS), (LEVELS > 0.5).astype(np.int64), None)


def assessed(
    tmp_path, model, *, name="mine", kind="torch", surrogate=None, attacks="quick", sha256=None,
    collect=False, **more
):  # fmt: skip
    settings = AssessSettings(epsilons=(0.1,), attacks=attacks, square_queries=30, **more)
    subject = Subject(
        name=name,
        kind=kind,
        sha256=sha256 or name.encode().hex(),
        model=model,
        shape=SHAPE,
        surrogate=surrogate,
    )
    result = assess_subject(
        subject,
        JUDGE,
        settings,
        keep=tmp_path,
        progress=lambda *_: None,
        device="cpu",
        collect=collect,
    )
    return settings, result


def page(settings, *models):
    return render_robustness_page(summarise(JUDGE, settings, models))


def flat(model):
    """The same answers, but outputs that look like probabilities."""
    return lambda x: model(x).softmax(1)


def test_the_page_needs_no_other_file_and_escapes_names(tmp_path):
    settings, model = assessed(tmp_path, threshold_model(), name="<b>mine", curve=(0.05, 0.1))
    text = page(settings, model)
    assert "&lt;b&gt;mine" in text
    assert "<b>mine" not in text
    assert "&lt;levels&gt;" in text
    assert not re.search(r'(src|href)="(?!data:|#)', text)
    assert text.count("<svg") == 2  # the curve, and the classes
    assert text.count("data:image/png") >= 3  # an original, what became of it, and the change


def test_a_model_that_is_never_right_has_no_distance(tmp_path):
    right = threshold_model()
    settings, model = assessed(tmp_path, lambda x: -right(x), attacks="cw_l2")
    text = page(settings, model)
    assert "median" not in text
    assert "nan" not in text


def test_a_name_with_dollars_is_no_formula(tmp_path):
    settings, model = assessed(tmp_path, threshold_model(), name="a$\\b{$", curve=(0.1,))
    assert "a$\\b{$" in page(settings, model)


def test_the_page_has_every_number_of_the_table(tmp_path):
    settings, model = assessed(tmp_path, threshold_model())
    judgement = model.assessment.judgements[0]
    text = page(settings, model)
    for name in ("clean", "fgsm", "pgd"):
        accuracy = judgement.accuracy(name)
        low, high = accuracy.interval
        assert f"{100 * accuracy.value:.1f} %<br><small>{100 * low:.1f} to {100 * high:.1f}" in text


def test_a_doubt_comes_before_any_number(tmp_path):
    settings, model = assessed(tmp_path, flat(threshold_model()))
    text = page(settings, model)
    assert "Do not decide on these numbers: one reason below suggests" in text
    assert text.index("probabilities</b> (doubt)") < text.index("an attacker takes")
    assert 'class="card verdict doubt"' in text


STANDARD = "the usual standard"
WEAK = "Only weak attacks were tried (FGSM, PGD): expect less under AutoAttack"


@pytest.mark.parametrize(
    ("attacks", "sentence"),
    [
        ("quick", WEAK),
        ("autoattack", STANDARD),
        ("apgd_ce,apgd_t,fab_t,square", STANDARD),  # AutoAttack by its parts
        ("pgd,apgd_t", "Only a part of AutoAttack was tried (PGD, APGD-T)"),
    ],
)
def test_the_conclusion_depends_on_what_was_tried(tmp_path, attacks, sentence):
    _, model = assessed(tmp_path, threshold_model(), attacks=attacks)
    missing = missing_attacks([model])
    assert (missing is None) == (sentence == STANDARD)
    assert sentence in f"{conclusion(model)} {missing}"


def test_weak_attacks_are_told_once_for_all_models(tmp_path):
    settings, first = assessed(tmp_path, threshold_model(), name="first")
    _, second = assessed(tmp_path, threshold_model(), name="second")
    assert page(settings, first, second).count(WEAK) == 1


def test_weak_attacks_are_not_told_where_the_page_says_worse(tmp_path):
    settings, doubted = assessed(tmp_path, flat(threshold_model()))
    _, alone = assessed(tmp_path, lambda x: threshold_model()(x).detach(), kind="onnx_int8")
    assert "Only weak" not in page(settings, doubted, alone)


def test_what_fooled_other_files_is_the_last_row_before_all_together(tmp_path):
    lender = Subject(name="mine", kind="torch", sha256="t", model=threshold_model(), shape=SHAPE)
    hidden = threshold_model()
    options = dict(attacks="pgd", collect=True)
    settings, first = assessed(tmp_path, lender.model, sha256="t", **options)
    _, second = assessed(
        tmp_path, lambda x: hidden(x).detach(), kind="onnx_fp32", surrogate=lender, **options
    )
    text = page(settings, *exchanged([first, second], settings))
    rows = re.findall(r"<tr><td>([^<]*)</td>|<tr class='main'><td>([^<]*)</td>", text)
    assert [one or other for one, other in rows][:6] == [
        "no attack", "PGD", "PGD (by transfer)", "Square (outputs only)",
        "images of its other files", "all together",
    ]  # fmt: skip


def test_an_upper_bound_is_called_one(tmp_path):
    lender = Subject(name="torch", kind="torch", sha256="t", model=threshold_model(), shape=SHAPE)
    hidden = threshold_model()
    _, transfer = assessed(
        tmp_path, lambda x: hidden(x).detach(), kind="onnx_int8", surrogate=lender
    )
    _, alone = assessed(tmp_path, lambda x: hidden(x).detach(), name="alone", kind="onnx_int8")
    assert "they are upper bounds" in conclusion(transfer)
    assert "A loose upper bound" in conclusion(alone)


def test_the_finding_names_the_weakest_class(tmp_path):
    _, model = assessed(tmp_path, threshold_model())
    judgement = model.assessment.judgements[0]
    robust = int((np.abs(LEVELS - 0.5) > 0.1).sum())
    assert f"it gets {100 * robust / 48:.1f} % (" in finding(judgement)
    assert "Its weakest class, 0, keeps" in finding(judgement)


def test_a_difference_is_called_chance_or_more(tmp_path):
    settings, good = assessed(tmp_path, threshold_model(), name="good")
    inverse = threshold_model()
    _, bad = assessed(tmp_path, lambda x: -inverse(x), name="bad")
    _, same = assessed(tmp_path, threshold_model(), name="same")
    first, second = summarise(JUDGE, settings, [good, bad, same]).comparisons
    assert "-100.0 points" not in comparison_sentence(second)
    assert "is more than chance" in comparison_sentence(first)
    assert "cannot tell" in comparison_sentence(second)


def test_the_undefended_model_is_the_baseline_wherever_it_is_named(tmp_path):
    settings, mine = assessed(tmp_path, threshold_model(), name="mine")
    _, fedavg = assessed(tmp_path, threshold_model(), name="fedavg")
    (comparison,) = summarise(JUDGE, settings, [mine, fedavg]).comparisons
    assert (comparison.title, comparison.baseline) == ("mine (torch)", "fedavg (torch)")
