from server_toolkit.benchmark.warning_signs import find_warnings
from tests.server_toolkit.benchmark.made_up import results, row

DONE = {"done": 5, "total": 5, "made_with": ["trajsyn 1 on cpu"]}


def warnings(*rows, work=DONE, failures=()):
    return find_warnings(results(*rows), work=work, remarks=[], failures=failures)


def test_a_control_that_beats_its_method_is_told():
    found = warnings(
        row("trajsyn_noise", robust=(0.3, 0.3, 0.3)), row("noise_only", robust=(0.5, 0.5, 0.5))
    )
    assert "the control noise_only beats trajsyn_noise by 20.0 AutoAttack points" in " ".join(found)
    assert not warnings(
        row("trajsyn_noise", robust=(0.6, 0.6, 0.6)), row("noise_only", robust=(0.5, 0.5, 0.5))
    )


def test_square_breaking_what_gradients_did_not_points_at_masking():
    assert "may be masked" in warnings(row("fedavg", masked=5))[0]
    assert not warnings(row("fedavg", masked=2))


def test_models_that_square_breaks_are_named_in_one_sentence():
    found = warnings(
        row("fedavg", masked=5), row("client_at", masked=7), row("noise_only", masked=2)
    )
    (said,) = (sentence for sentence in found if "Square" in sentence)
    assert "broke 5 to 7 % of the judged images" in said
    assert said.endswith("with fedavg (seeds 0, 1, 2), client_at (seeds 0, 1, 2).")


def test_failures_and_missing_work_come_first_and_one_reason_is_told_once():
    work = DONE | {"done": 2}
    found = warnings(row("fedavg", masked=9), work=work, failures=[("a", "E: x"), ("b", "E: x")])
    assert found[0] == "a and 1 more failed: E: x"
    assert found[1].startswith("Unfinished: 2 of 5")


def test_undefined_recovery_names_the_seeds():
    found = warnings(
        row("fedavg", robust=(0.5, 0.1, 0.5)), row("client_at", robust=(0.5, 0.6, 0.52))
    )
    assert "with seed 0, 2; recovery is undefined" in " ".join(found)


def test_one_seed_is_told():
    assert "one seed only" in " ".join(warnings(row("fedavg", clean=(0.9,), robust=(0.5,))))


def test_mixed_software_is_told():
    work = DONE | {"made_with": ["trajsyn 1 on cpu", "trajsyn 2 on cpu"]}
    assert "trajsyn 1 on cpu; trajsyn 2 on cpu" in warnings(row("fedavg"), work=work)[0]
