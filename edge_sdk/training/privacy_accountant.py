"""What training with noise has told about an example: Rényi accounting of DP-SGD's steps."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edge_sdk.errors import ConfigError

# Epsilon is the least that any order gives. Low orders, between the integers too, serve large
# epsilons, high ones small epsilons.
ORDERS = (*(1 + tenth / 10 for tenth in range(1, 100)), *(float(n) for n in range(12, 64)))
TAIL = 12.0  # standard deviations; beyond them a Gaussian holds less than 1e-32
POINTS_A_DEVIATION = 4
MAX_POINTS = 1 << 20


@dataclass(frozen=True)
class NoisySteps:
    """`steps` of the Gaussian mechanism, each on a Poisson sample of the examples."""

    noise_multiplier: float
    sampling_rate: float
    steps: int

    def __post_init__(self) -> None:
        if not (
            self.noise_multiplier >= 0
            and math.isfinite(self.noise_multiplier)
            and 0 <= self.sampling_rate <= 1
            and self.steps >= 0
        ):
            raise ConfigError(
                f"a noise multiplier of {self.noise_multiplier}, a sampling rate of "
                f"{self.sampling_rate} and {self.steps} steps; the first and the last must not be "
                "negative, the second must lie in [0, 1]"
            )


def epsilon_spent(history: Sequence[NoisySteps], *, delta: float) -> float:
    """Return epsilon such that all of `history` together is (epsilon, `delta`)-private.

    Neighbouring data sets differ by one example more or less. Steps compose by adding their Rényi
    divergences, of whatever rounds they are and whatever the later ones learned from the earlier
    (Mironov 2017, proposition 1); the conversion is theorem 21 of Balle et al. 2020. Infinite
    where a step had no noise. Raises `ConfigError` unless `delta` lies between 0 and 1.
    """
    if not 0 < delta < 1:
        raise ConfigError(f"delta is {delta}; it must lie between 0 and 1, well under 1 / examples")
    if not any(part.steps and part.sampling_rate for part in history):
        return 0.0
    if not all(part.noise_multiplier for part in history if part.steps and part.sampling_rate):
        return math.inf
    best = math.inf
    for order in ORDERS:
        total = sum(
            part.steps * _divergence(part.sampling_rate, part.noise_multiplier, order)
            for part in history
            if part.steps and part.sampling_rate
        )
        best = min(best, total + math.log1p(-1 / order) - math.log(delta * order) / (order - 1))
    return max(best, 0.0)


@functools.lru_cache(maxsize=4096)
def _divergence(rate: float, noise: float, order: float) -> float:
    """Return the Rényi divergence of one step (Mironov, Talwar and Zhang 2019, section 3.3).

    It is log(A) / (order - 1), where A is the mean, for z normal with deviation `noise`, of
    (1 - rate + rate * exp((2 z - 1) / (2 noise²))) ** order. The integrand is smooth and falls as
    a Gaussian, so the sum over equidistant points is exact to rounding (Trefethen and Weideman
    2014); it is done with logarithms, as single terms can be larger than any float.
    """
    if rate == 1:
        return order / (2 * noise**2)
    # The integrand has its bumps, as wide as the noise, from z = 0 to z = order. The distance also
    # resolves where the two terms of the power change places, over a length of noise².
    spacing = min(noise, noise**2) / POINTS_A_DEVIATION
    count = math.ceil((order + 2 * TAIL * noise) / spacing)
    if count > MAX_POINTS:
        return math.inf  # noise of a fiftieth of the clipping norm protects nothing anyway
    z = np.arange(count + 1) * spacing - TAIL * noise
    ratio = np.logaddexp(math.log1p(-rate), math.log(rate) + (2 * z - 1) / (2 * noise**2))
    terms = order * ratio - z**2 / (2 * noise**2)
    peak = float(terms.max())
    area = float(np.exp(terms - peak).sum()) * spacing / (noise * math.sqrt(2 * math.pi))
    return max(peak + math.log(area), 0.0) / (order - 1)
