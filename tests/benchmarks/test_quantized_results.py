import importlib

import pytest


@pytest.fixture
def results(request, monkeypatch):
    """The module, which runs from the benchmarks' own folder."""
    monkeypatch.syspath_prepend(request.config.rootpath / "benchmarks")
    return importlib.import_module("quantized_results")


def run(results, seed, accuracy, int8, curve):
    names = dict(zip(results.DEPLOYED, int8, strict=True))
    where = {"network": "8", "partition": "iid", "arm": "fp32", "seed": seed}
    return where | dict(accuracy=accuracy, int8_accuracy=names, curve=curve, training_cpu_s=1.0)


def test_a_row_has_mean_and_range_of_its_seeds(results):
    runs = [
        run(results, 0, 0.9, [0.89, 0.91, 0.9, 0.9], [0.5, 0.79, 0.8, 0.9]),
        run(results, 1, 0.8, [0.78, 0.80, 0.8, None], [0.5, 0.6, 0.7, 0.79]),
    ]
    (row,) = results.table(runs)
    assert row["seeds"] == 2
    assert row["accuracy"] == pytest.approx([85, 80, 90])
    assert row["rounds"] == [3, None]
    losses = list(row["loss"].values())
    assert losses[0] == pytest.approx([1.5, 1, 2])
    assert losses[1] == pytest.approx([-0.5, -1, 0])
    assert losses[3] is None  # refused for one seed


def test_arms_and_networks_have_rows_of_their_own(results):
    one = run(results, 0, 0.9, [0.9] * 4, [0.9])
    rows = results.table([one, one | {"arm": "int8"}, one | {"network": "16"}, one | {"seed": 1}])
    assert [(r["network"], r["arm"], r["seeds"]) for r in rows] == [
        ("8", "fp32", 2),
        ("8", "int8", 1),
        ("16", "fp32", 1),
    ]
