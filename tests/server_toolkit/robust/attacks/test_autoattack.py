"""AutoAttack and its parts keep their promises on trained networks."""

import pytest
import torch

from server_toolkit.errors import ConfigError
from server_toolkit.robust.attacks import (
    apgd_ce,
    apgd_dlr,
    apgd_t,
    autoattack,
    cw_l2,
    cw_linf,
    fab_t,
    fgsm,
    pgd,
    square,
)

ORDER = ["apgd-ce", "apgd-t", "fab-t", "square"]
QUERIES = 100
BOTH = [apgd_ce, apgd_dlr, apgd_t, fab_t, square]
CASES = [
    *[(attack, norm) for attack in BOTH for norm in ("linf", "l2")],
    (cw_linf, "linf"),
    (cw_l2, "l2"),
]
EPSILON = {"linf": 0.17, "l2": 0.7}


def run(attack, norm, model, images, labels, **options):
    if attack in BOTH:
        options["norm"] = norm
    if attack is square:
        options["queries"] = QUERIES
    if attack is cw_l2:
        options |= dict(steps=30, searches=3)
    if attack in (apgd_t, fab_t):
        options["targets"] = 2
    if attack in (apgd_ce, apgd_dlr, apgd_t, fab_t):
        options["steps"] = 30
    return attack(model, images, labels, epsilon=options.pop("epsilon", EPSILON[norm]), **options)


@pytest.fixture(scope="module", params=["linf", "l2"])
def attacked(request, hardened, held_out):
    """AutoAttack's result with its norm."""
    seen = []
    result = autoattack(
        hardened,
        *held_out,
        epsilon=EPSILON[request.param],
        norm=request.param,
        square_queries=QUERIES,
        progress=lambda name, left: seen.append((name, left)),
    )
    assert seen == list(result.robust_after.items())
    return request.param, result


def length(change, norm):
    return change.flatten(1).norm(p=torch.inf if norm == "linf" else 2, dim=1)


@pytest.mark.parametrize(("attack", "norm"), CASES)
def test_results_are_what_they_say(attack, norm, hardened, held_out):
    images, labels = held_out
    clean = hardened(images).argmax(1) == labels
    assert not clean.all()
    result = run(attack, norm, hardened, images, labels)
    fell = clean & ~result.robust
    assert 0 < fell.sum() < clean.sum()
    answers = hardened(result.adversarial).argmax(1)
    assert (answers[fell] != labels[fell]).all()
    assert torch.equal(result.adversarial[~fell], images[~fell])
    assert length(result.adversarial - images, norm).max() <= EPSILON[norm] + 1e-6
    assert result.adversarial.min() >= 0
    assert result.adversarial.max() <= 1


@pytest.mark.parametrize(("attack", "norm"), CASES)
def test_the_layout_of_the_images_in_memory_does_not_matter(attack, norm, hardened, held_out):
    images, labels = (part[:8] for part in held_out)
    turned = images.transpose(2, 3).contiguous().transpose(2, 3)
    plain, other = (run(attack, norm, hardened, x, labels) for x in (images, turned))
    assert torch.equal(plain.robust, other.robust)
    torch.testing.assert_close(plain.adversarial, other.adversarial, atol=1e-3, rtol=0)


def test_no_images_are_no_error(hardened, held_out):
    images, labels = held_out
    result = autoattack(hardened, images[:0], labels[:0], epsilon=0.1)
    assert result.adversarial.shape == images[:0].shape
    assert list(result.robust_after.values()) == [0, 0, 0, 0]


@pytest.mark.parametrize(("attack", "norm"), CASES)
def test_one_seed_gives_one_result_for_any_batch_size(attack, norm, hardened, held_out):
    images, labels = held_out[0][:12], held_out[1][:12]
    first = run(attack, norm, hardened, images, labels, batch_size=64)
    again = run(attack, norm, hardened, images, labels, batch_size=64)
    assert torch.equal(first.adversarial, again.adversarial)
    small = run(attack, norm, hardened, images, labels, batch_size=5)
    assert torch.equal(first.robust, small.robust)


@pytest.mark.parametrize("attack", [apgd_ce, square])
def test_another_seed_gives_another_result(attack, hardened, held_out):
    first, other = (run(attack, "linf", hardened, *held_out, seed=s).adversarial for s in (0, 1))
    assert not torch.equal(first, other)


def test_autoattack_is_at_least_as_strong_as_each_attack(attacked, hardened, held_out):
    norm, result = attacked
    own = int(result.robust.sum())
    for attack in BOTH:
        assert own <= int(run(attack, norm, hardened, *held_out).robust.sum())
    assert own <= int(result.clean.sum())


def test_autoattack_counts_what_each_attack_left(attacked, hardened, held_out):
    norm, result = attacked
    assert list(result.robust_after) == ORDER
    left = result.clean.clone()
    for name in ORDER:
        assert not (result.broken_by[name] & ~left).any()
        left &= ~result.broken_by[name]
        assert result.robust_after[name] == int(left.sum())
    assert torch.equal(left, result.robust)
    assert torch.equal(hardened(held_out[0]).argmax(1) == held_out[1], result.clean)
    turned = result.clean & ~result.robust
    answers = hardened(result.adversarial).argmax(1)
    assert (answers[turned] != held_out[1][turned]).all()
    assert torch.equal(result.adversarial[~turned], held_out[0][~turned])
    assert length(result.adversarial - held_out[0], norm).max() <= EPSILON[norm] + 1e-6
    assert not result.zero_gradient.any()


@pytest.mark.parametrize("network", ["hardened", "plain"])
def test_square_never_beats_the_white_box(network, request, held_out):
    model = request.getfixturevalue(network)
    for epsilon in (0.1, 0.2):
        white = run(apgd_t, "linf", model, *held_out, epsilon=epsilon).robust
        black = square(model, *held_out, epsilon=epsilon, queries=200).robust
        assert int(white.sum()) <= int(black.sum())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_robust_accuracy_falls_with_epsilon_to_nothing(norm, hardened, held_out):
    images, labels = held_out[0][:8], held_out[1][:8]
    left = [
        int(
            autoattack(
                hardened, images, labels, epsilon=share * EPSILON[norm], norm=norm, square_queries=5
            ).robust.sum()
        )
        for share in (0.2, 5)
    ]
    assert left == sorted(left, reverse=True)
    assert left[0] >= 5
    assert left[-1] == 0


def test_plain_network_falls_where_the_hardened_one_stands(plain, hardened, held_out):
    weak, strong = (
        run(apgd_t, "linf", model, *held_out).robust.sum() for model in (plain, hardened)
    )
    assert weak < strong - 4


def test_pgd_and_fgsm_leave_at_least_what_apgd_leaves(hardened, held_out):
    images, labels = held_out
    generator = torch.Generator().manual_seed(0)
    attacked = [
        fgsm(hardened, images, labels, epsilon=0.17),
        pgd(hardened, images, labels, epsilon=0.17, steps=20, generator=generator),
    ]
    by_fgsm, by_pgd = (int((hardened(x).argmax(1) == labels).sum()) for x in attacked)
    assert int(run(apgd_t, "linf", hardened, images, labels).robust.sum()) <= by_pgd <= by_fgsm


def test_masked_gradients_are_counted_and_do_not_stop_the_search(hardened, held_out):
    images = held_out[0][:10]

    def masked(batch):
        return hardened(batch).round() + 0 * batch.sum()  # steps: their slope is zero

    labels = masked(images).argmax(1)
    result = autoattack(masked, images, labels, epsilon=0.3, square_queries=300)
    assert result.zero_gradient.all()
    assert result.broken_by["square"].sum() >= 3


@pytest.mark.parametrize("attack", [apgd_ce, apgd_t, fab_t, cw_linf, cw_l2, autoattack])
def test_a_model_without_gradients_is_refused_with_a_way_out(attack, hardened, held_out):
    def scores_only(batch):
        return torch.from_numpy(hardened(batch.detach()).numpy())

    with pytest.raises(ConfigError, match="square"):
        attack(scores_only, *held_out, epsilon=0.1)


def test_images_that_are_wrong_from_the_start_cost_nothing(hardened, held_out):
    images, _ = held_out
    asked = []

    def model(batch):
        asked.append(len(batch))
        return hardened(batch)

    wrong = (hardened(images).argmax(1) + 1) % 5
    result = autoattack(model, images, wrong, epsilon=0.1)
    assert not result.robust.any()
    assert not result.clean.any()
    assert torch.equal(result.adversarial, images)
    assert result.robust_after == dict.fromkeys(ORDER, 0)
    assert sum(asked) == len(images)
