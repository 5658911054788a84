import pytest

from server_toolkit.errors import GateError
from server_toolkit.release.gate import ArmScores, GateLimits, check_gate

FEDAVG = ArmScores(clean=0.98, robust=0.40, int8_clean=0.98, int8_robust=0.40)
LIMITS = GateLimits(min_clean=0.9, max_clean_drop=0.04, min_robust_gain=0.1, max_int8_drop=0.02)


def arm(clean=0.95, robust=0.55, int8_clean=0.945, int8_robust=0.545):
    return ArmScores(clean=clean, robust=robust, int8_clean=int8_clean, int8_robust=int8_robust)


def test_an_arm_within_all_limits_passes():
    check_gate(arm(), FEDAVG, LIMITS)


def test_an_arm_exactly_at_the_limits_passes():
    check_gate(arm(clean=0.94, robust=0.5, int8_clean=0.92, int8_robust=0.48), FEDAVG, LIMITS)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (arm(clean=0.935, int8_clean=0.935), r"lost to fedavg is 4\.5 .* 4\.0 .*missed by 0\.5"),
        (arm(robust=0.43, int8_robust=0.43), r"won over fedavg is 3\.0 .* 10\.0 .*missed by 7\.0"),
        (arm(int8_clean=0.90), r"clean accuracy lost to int8 is 5\.0 .* 2\.0 .*missed by 3\.0"),
        (arm(int8_robust=0.50), r"robust accuracy lost to int8 is 5\.0 .* 2\.0 .*missed by 3\.0"),
    ],
)
def test_a_missed_limit_is_named_with_what_is_missing(scores, message):
    with pytest.raises(GateError, match=message) as caught:
        check_gate(scores, FEDAVG, LIMITS)
    assert ";" not in str(caught.value)


def test_all_missed_limits_are_listed():
    with pytest.raises(GateError) as caught:
        check_gate(arm(clean=0.5, robust=0.1, int8_clean=0.4, int8_robust=0.0), FEDAVG, LIMITS)
    assert str(caught.value).count("missed by") == 5


def test_nan_passes_no_gate():
    with pytest.raises(GateError, match="robust accuracy won"):
        check_gate(arm(robust=float("nan")), FEDAVG, LIMITS)
