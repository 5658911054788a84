"""Numbers worked out by hand from a made-up run."""

import json

import numpy as np
import pytest

from edge_sdk.overhead.comparison import against, compare_uploads, tax
from edge_sdk.overhead.energy import Trace
from edge_sdk.overhead.plan import Budget, Plan, arms
from edge_sdk.overhead.session import Raw
from edge_sdk.overhead.summary import Summary
from edge_sdk.overhead.values import (
    Value,
    absent,
    combine,
    derived,
    estimated,
    measured,
    quantile,
    ratio,
    to_json,
)

ARMS = arms(epsilon=8 / 255, step_size=2 / 255)
PLAN = Plan(
    threads=1, batch_size=10, steps=3, rounds=1, repeats=1, seed=0, arms=tuple(ARMS), tax_s=1,
    rate_hz=10, idle_s=1, epsilon=8 / 255, step_size=2 / 255,
)  # fmt: skip


class Watcher:
    """A sampler whose device takes 2 W when idle (until t = 100) and 5 W afterwards."""

    power_name = "made-up meter"
    power_covers = "everything"
    cpu_s, failures = 0.1, 0

    def trace(self):
        times = np.arange(90, 120, 0.01)
        return Trace(times, np.where(times < 100, 2.0, 5.0), is_counter=False)

    def temperature(self, start, end):
        return measured(50.0, "°C", "made up")

    def clock(self, start, end):
        return measured(1000.0, "MHz", "made up")

    def throttling(self, start, end):
        return measured("none", "text", "made up")


def made_up_run(scale=1.0, sha="aa"):
    """Three steps that end at 101, 102 and 104 (times `scale`), from a task at 100.5."""
    t0 = 100
    steps = [[t0 + 1 * scale, 1.0], [t0 + 2 * scale, 1.5], [t0 + 4 * scale, 2.5]]
    runs = []
    for begin, end in ((1, 2), (2, 4)):
        width = (end - begin) * scale
        a = t0 + begin * scale
        runs += [[a, a + 0.4 * width, 0.2 * width], [a + 0.4 * width, a + 0.6 * width, 0.1 * width]]
    optimiser = [[t0 + 1.9 * scale, t0 + 2 * scale, 0.05]]
    spans = {
        "fetch": [[t0 + 0.5, t0 + 0.6, 0.01]],
        "load": [[t0 + 0.6, t0 + 0.8, 0.1]],
        "forward_backward": runs,
        "optimiser": optimiser,
        "training": [[t0 + 0.7, t0 + 4 * scale, 2.4]],
        "encode": [[t0 + 4 * scale, t0 + 4 * scale + 0.1, 0.1]],
        "store": [[t0 + 4 * scale + 0.1, t0 + 4 * scale + 0.2, 0.0]],
        "publish": [[t0 + 4 * scale + 0.2, t0 + 4 * scale + 0.5, 0.02]],
    }
    return {
        "spans": spans,
        "peaks": {"load": [5, 7], "forward_backward": [9], "optimiser": [8]},
        "steps": [steps],
        "peak_rss_bytes": 10,
        "children_peak_rss_bytes": 0,
        "cpu_s": 3.0,
        "started_s": 99.0,
        "ended_s": 106.0,
        "server": {
            "uploads": [{"round": 0, "sha256": sha, "size": 300}],
            "bytes_up": {"update chunks": 310, "offer": 20, "need": 5, "status": 5},
            "bytes_down": {"task": 50, "task files": 1000, "need": 4, "done": 6},
            "release": None,
        },
    }


def summary(raw, has_broker=True):
    return Summary(
        raw, plan=PLAN, sampler=Watcher(), has_broker=has_broker, update_bytes_note="int8"
    )


@pytest.fixture
def raw():
    return Raw(
        arms={"federated": [made_up_run()], "pgd7": [made_up_run(scale=2.0, sha="bb")]},
        idle=[(91.0, 93.0), (95.0, 99.0)],
    )


def test_a_step_leaves_out_the_first_and_takes_medians_of_the_rest(raw):
    step = summary(raw).arm(ARMS["federated"])["step"]
    assert step["time_median"].value == pytest.approx(1.0)  # of 1 and 2, the nearest rank
    assert step["time_p95"].value == pytest.approx(2.0)
    assert step["cpu_median"].value == pytest.approx(0.5)
    assert step["images_per_s"].value == pytest.approx(10)
    assert step["images_per_s"].kind == "derived"


def test_energy_is_above_idle_and_per_step(raw):
    made = summary(raw)
    assert made.idle.watts == pytest.approx(2)
    step = made.arm(ARMS["federated"])["step"]["energy"]
    assert step.value == pytest.approx((5 - 2) * 3 / 2)  # 3 s for two steps
    assert step.kind == "derived"
    assert "2 W" in step.source
    whole = made.arm(ARMS["federated"])["round"]["energy"]
    assert whole.value == pytest.approx(3 * 4.0)  # from the task at 100.5 to the receipt at 104.5


def test_parts_of_a_step_share_its_energy_by_cpu_time_and_say_that_this_is_an_estimate(raw):
    tree = summary(raw).arm(ARMS["federated"])
    part = tree["phases"]["forward_backward"]
    assert part["time_median"].value == pytest.approx(0.6)
    assert part["cpu_median"].value == pytest.approx(0.3)
    assert part["energy"].kind == "estimated"
    assert part["energy"].value == pytest.approx(4.5 * 0.3 / 0.5)
    assert part["peak_rss"].value == 9


def test_a_round_reaches_from_the_task_to_the_receipt_and_counts_its_bytes(raw):
    tree = summary(raw).arm(ARMS["federated"])
    assert tree["round"]["time_median"].value == pytest.approx(4.0)
    assert tree["round"]["cpu_median"].value == pytest.approx(0.01 + 0.1 + 2.4 + 0.1 + 0 + 0.02)
    assert tree["round"]["bytes_up"].value == 335  # without the heartbeat
    assert tree["round"]["bytes_down"].value == 1060
    assert tree["phases"]["publish"]["bytes"].value == 330
    assert tree["phases"]["load"]["peak_rss"].value == 7


def test_without_a_broker_publishing_is_absent_with_what_to_do(raw):
    publish = summary(raw, has_broker=False).arm(ARMS["federated"])["phases"]["publish"]
    assert {v.kind for v in publish.values()} == {"absent"}
    assert all("mosquitto" in v.remedy for v in publish.values())


def test_arms_are_compared_as_multiples(raw):
    made = summary(raw)
    tree, reference = made.arm(ARMS["pgd7"]), made.arm(ARMS["federated"])
    found = against(tree, reference)
    assert found["step_time"].value == pytest.approx(2.0)
    assert found["bytes_up"].value == 1.0
    assert {v.value for v in against(reference, reference).values()} == {1.0}


def test_an_arm_that_was_not_reached_has_no_numbers():
    assert summary(Raw()).arm(ARMS["dp_sgd"]) == {"title": "DP-SGD"}


def test_one_different_upload_of_one_repeat_is_enough_to_say_different():
    same = Raw(arms={"federated": [made_up_run()] * 2, "trajsyn": [made_up_run()] * 2})
    assert compare_uploads(same, "federated", "trajsyn")["identical"].value is True
    other = Raw(
        arms={"federated": [made_up_run()] * 2, "trajsyn": [made_up_run(), made_up_run(sha="cc")]}
    )
    found = compare_uploads(other, "federated", "trajsyn")
    assert found["identical"].value is False
    assert "cc" in found["rounds"]["round 0"]["trajsyn"].value
    missing = Raw(arms={"federated": [made_up_run()]})
    assert compare_uploads(missing, "federated", "trajsyn")["identical"].kind == "absent"


def test_an_upload_that_did_not_come_is_a_difference():
    short = made_up_run()
    short["server"] = short["server"] | {"uploads": []}
    raw = Raw(arms={"federated": [made_up_run()], "trajsyn": [short]})
    assert compare_uploads(raw, "federated", "trajsyn")["identical"].value is False


def test_the_tax_is_the_latency_beside_training_over_that_without():
    quiet = {"latencies_s": [0.001] * 98 + [0.01, 0.02], "start_s": 0.0, "ended_s": 10.0}
    beside = {
        "latencies_s": [0.002] * 98 + [0.05, 0.2], "start_s": 0.0, "ended_s": 10.0,
        "background": {"steps": [-1.0, 2.0, 4.0, 11.0]},
    }  # fmt: skip
    raw = Raw(tax={"none": [quiet], "default": [beside]})
    found = tax(raw, {"none": None, "default": Budget("default", 1, 10, 0.5)}, PLAN)
    assert found["none"]["latency_p99"].value == 0.01
    assert found["default"]["latency_p99"].value == 0.05
    assert found["default"]["tax_p99"].value == pytest.approx(5)
    assert found["default"]["tax_median"].value == pytest.approx(2)
    assert found["default"]["frames_late"].value == pytest.approx(1 / 100)
    assert found["default"]["steps_per_s"].value == pytest.approx(2 / 10)
    assert found["default"]["title"] == "1 thread, niceness 10, 50% of the time"
    assert found["none"]["steps_per_s"].kind == "absent"


# Values


def test_a_value_without_a_number_must_say_why():
    with pytest.raises(ValueError, match="reason"):
        Value(None, "J", "absent", "none")
    with pytest.raises(ValueError, match="absent"):
        Value(None, "J", "measured", "x")
    with pytest.raises(ValueError, match="absent"):
        Value(1.0, "J", "absent", "x", "reason")


def test_what_is_made_of_estimates_is_an_estimate_and_of_nothing_is_absent():
    one, two = measured(1.0, "J", "a"), estimated(2.0, "J", "b")
    assert combine("J", "sum", [one, derived(2.0, "J", "c")], lambda a, b: a + b).kind == "derived"
    assert combine("J", "sum", [one, two], lambda a, b: a + b).kind == "estimated"
    gone = combine("J", "sum", [one, absent("J", "no sensor", "buy one")], lambda a, b: a + b)
    assert (gone.kind, gone.reason, gone.remedy) == ("absent", "no sensor", "buy one")


def test_no_ratio_to_what_cannot_be_told_from_zero():
    noisy = derived(0.1, "J", "x", uncertainty=0.06)
    assert ratio(derived(5.0, "J", "x"), noisy, "r").kind == "absent"
    assert ratio(derived(5.0, "J", "x"), derived(0.0, "J", "x"), "r").kind == "absent"
    assert ratio(derived(5.0, "J", "x"), derived(2.0, "J", "x"), "r").value == 2.5


def test_quantiles_are_samples():
    samples = [float(i) for i in range(1, 101)]
    assert quantile(samples, 0.95, "s", "x").value == 95
    assert quantile(samples, 0.99, "s", "x").value == 99
    assert quantile([3.0], 0.99, "s", "x").value == 3
    assert quantile([], 0.5, "s", "x").kind == "absent"


def test_json_has_value_unit_kind_and_source_everywhere():
    tree = to_json({"a": [measured(1, "B", "x")], "b": absent("J", "why")})
    assert json.loads(json.dumps(tree)) == {
        "a": [{"value": 1, "unit": "B", "kind": "measured", "source": "x"}],
        "b": {"value": None, "unit": "J", "kind": "absent", "source": "none", "reason": "why"},
    }
