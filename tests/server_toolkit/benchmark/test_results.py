import pytest

from server_toolkit.benchmark.results import difference, recovery
from tests.server_toolkit.benchmark.made_up import results, row


def test_recovery_is_the_mean_of_a_ratio_for_each_seed():
    ours = row("trajsyn_noise", robust=(0.3, 0.5, 0.5))
    found = results(
        ours,
        row("fedavg", robust=(0.1, 0.1, 0.2)),
        row("client_at", robust=(0.5, 0.9, 0.8)),
    )
    share = recovery(found, ours)
    assert share.by_seed == pytest.approx({0: 0.5, 1: 0.5, 2: 0.5})
    assert share.spread.mean == pytest.approx(0.5)
    assert share.undefined == ()


def test_recovery_leaves_out_seeds_where_client_at_gains_next_to_nothing():
    ours = row("trajsyn_noise", robust=(0.3, 0.5, 0.5))
    found = results(
        ours, row("fedavg", robust=(0.1, 0.5, 0.5)), row("client_at", robust=(0.5, 0.54, 0.4))
    )
    share = recovery(found, ours)
    assert share.undefined == (1, 2)
    assert share.by_seed == pytest.approx({0: 0.5})


def test_recovery_is_undefined_where_no_seed_allows_it():
    ours = row("trajsyn_noise")
    share = recovery(results(ours, row("fedavg"), row("client_at")), ours)
    assert share.spread is None


def test_recovery_needs_both_references():
    ours = row("trajsyn_noise")
    assert recovery(results(ours, row("fedavg")), ours) is None


def test_difference_takes_seeds_in_pairs():
    ours = row("trajsyn_server_set", robust=(0.2, 0.5, 0.8), server_images=1)
    theirs = row("server_set_only", robust=(0.1, 0.4, 0.7), server_images=1)
    gap = difference(ours, theirs, "autoattack")
    assert gap.seeds.mean == pytest.approx(0.1)
    assert gap.seeds.interval == pytest.approx((0.1, 0.1))
    assert gap.verdict == "better"


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "cannot be told apart"),
        ((0.3, 0.3, 0.3), (0.5, 0.5, 0.5), "worse"),
        ((0.9, 0.5, 0.5), (0.5, 0.4, 0.5), "better for these models, not proven over seeds"),
        ((0.51, 0.50, 0.49), (0.50, 0.51, 0.50), "cannot be told apart"),
    ],
)
def test_verdict_says_no_more_than_the_intervals_do(ours, theirs, verdict):
    gap = difference(
        row("trajsyn_noise", robust=ours), row("noise_only", robust=theirs), "autoattack"
    )
    assert gap.verdict == verdict


def test_one_seed_is_decided_by_images_and_said_so():
    ours = row("trajsyn_noise", clean=(0.9,), robust=(0.7,))
    theirs = row("noise_only", clean=(0.9,), robust=(0.4,))
    assert difference(ours, theirs, "autoattack").verdict == "better (one seed)"


def test_control_of_a_method_has_the_same_server_images():
    method = row("trajsyn_server_set", server_images=10)
    found = results(
        method, row("server_set_only", server_images=1), row("server_set_only", server_images=10)
    )
    assert found.control_of(method).server_images == 10
