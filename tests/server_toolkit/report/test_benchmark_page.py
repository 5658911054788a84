"""The benchmark's page says what its figures allow, in figures that mean something."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

from server_toolkit.benchmark.document import RunFacts, make_document
from server_toolkit.benchmark.statistics import in_points
from server_toolkit.benchmark.store import Store
from server_toolkit.report.benchmark_page import render_benchmark_page
from server_toolkit.report.benchmark_pictures import pictures_of
from tests.server_toolkit.benchmark.made_up import results, row, tiny

FACTS = RunFacts(preset=tiny(), data=[{"dataset": "mnist"}], machine={})


def page_of(directory, *rows, cpu_s=0.0):
    document = make_document(results(*rows), FACTS, [], Store(directory))
    document["work"]["cpu_s"] = cpu_s
    html = render_benchmark_page(document, [])
    text = re.sub(r"<(style|svg).*?</\1>", " ", html, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", text).split())


def test_an_interval_that_leaves_all_open_is_no_figure(tmp_path):
    two = dict(clean=(0.9, 0.9))
    text = page_of(
        tmp_path,
        row("trajsyn_noise", robust=(0.2, 0.5), **two),
        row("noise_only", robust=(0.5, 0.3), **two),
    )
    assert "35.0 ± over 50" in text
    assert "too few seeds" in text
    assert not re.search(r"±\d{3}", text)


def test_equal_results_are_no_interval_of_width_zero(tmp_path):
    text = page_of(
        tmp_path,
        row("trajsyn_noise"),
        row("noise_only"),
        row("trajsyn_server_set", robust=(0.2, 0.5, 0.8), server_images=1),
        row("server_set_only", robust=(0.1, 0.4, 0.7), server_images=1),  # 0.1 but for rounding
    )
    assert "+10.0 to +10.0" not in text
    assert text.count("the same with every seed") == 2
    assert "no image differs" in text
    assert "0.0 to 0.0" not in text.replace("+", "").replace("-", "")


def test_nothing_has_the_sign_of_a_rounding_error(tmp_path):
    text = page_of(
        tmp_path,
        row("fedavg"),
        row("client_at", robust=(0.9, 0.9, 0.9)),
        row("trajsyn_noise", clean=(0.7, 0.8, 0.6)),
        # The means of the differences are -4e-17.
        row("noise_only", clean=(0.6, 0.7, 0.8), robust=(0.5, 0.51, 0.49)),
    )
    assert not re.search(r"[-+]0\.00?\b(?!\d)", text)
    assert "recovery 0.00" in text


@pytest.mark.parametrize(
    ("difference", "text"), [(0.0151, "+1.5"), (-0.0004, "0.0"), (0.0, "0.0"), (-0.2, "-20.0")]
)
def test_differences_are_written_in_points_with_their_sign(difference, text):
    assert in_points(difference) == text


@pytest.mark.parametrize(
    ("cpu_s", "text"), [(31.0, "31 s"), (1140.0, "19 min"), (100_000.0, "27.8 h")]
)
def test_time_is_told_in_a_fitting_unit(tmp_path, cpu_s, text):
    assert f"processor time {text}" in page_of(tmp_path, row("fedavg"), cpu_s=cpu_s)


def test_what_was_not_decided_is_not_counted_as_missed(tmp_path):
    text = page_of(tmp_path, row("fedavg"))
    assert "goals 3 undecided" in text
    assert "measured on no data set; 2 are needed" in text


def test_every_table_says_on_how_many_images_it_rests(tmp_path):
    assert page_of(tmp_path, row("fedavg")).count("100 images a seed") == 2


def test_every_figure_says_what_its_intervals_are_over(tmp_path):
    text = page_of(tmp_path, row("fedavg"), row("client_at"), row("trajsyn_noise"))
    assert text.count("lines: 95 % over seeds") == 1
    assert text.count("lines: 95 % over images") == 3


class Made:
    """A store in which these pieces, named by their match loss, are done."""

    def __init__(self, *pieces):
        self.pieces = pieces

    def done(self, piece):
        return piece in self.pieces

    def record(self, piece):
        return SimpleNamespace(values={"match_loss": piece})

    def tensors(self, piece):
        return {"images": np.zeros((1, 1, 2, 2), np.float32), "hard_labels": np.zeros(1, np.int64)}


@pytest.mark.parametrize(
    ("done", "meaning"),
    [
        ((None,), "set 1 of 3 made on the way; nothing matched"),
        ((None, 0.75, 0.5), "set 3 of 3 made on the way; match loss 0.50"),
    ],
)
def test_the_pictures_are_those_that_a_method_made_last(done, meaning):
    cell = SimpleNamespace(
        dataset="mnist", network="convnet-16", partition="iid", epsilon=0.3, seed=0,
        server_images=0, arm=SimpleNamespace(name="trajsyn_noise"), proxies=(None, 0.75, 0.5),
    )  # fmt: skip
    (picture,) = pictures_of(SimpleNamespace(cells=(cell,), store=Made(*done)))
    assert picture.meaning == f"convnet-16, iid, seed 0, {meaning}"
