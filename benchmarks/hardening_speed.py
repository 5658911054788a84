"""Processor time of a hardening step, in torch and on the devices' runtime, in one process.

The engines take turns, a short run each; what is printed are medians. Exports are not counted.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from models import ModelSpec
from models.networks import build_model, flat_parameters
from server_toolkit.robust import native_engine
from server_toolkit.robust.harden import HardenConfig, harden

# Architecture, width, channels and image size; what is changed in the settings.
CASES: Mapping[str, tuple[tuple[str, int, int, int], dict[str, Any]]] = {
    "`kl`, width 16, 28x28": (("convnet", 16, 1, 28), {}),
    "`kl`, PGD-7": (("convnet", 16, 1, 28), {"attack_steps": 7}),
    "`kl`, AWP": (("convnet", 16, 1, 28), {"awp_gamma": 0.005}),
    "`pgd_at`": (("convnet", 16, 1, 28), {"objective": "pgd_at"}),
    "`fast`": (("convnet", 16, 1, 28), {"objective": "fast"}),
    "`trades`": (("convnet", 16, 1, 28), {"objective": "trades"}),
    "`mart`": (("convnet", 16, 1, 28), {"objective": "mart"}),
    "`kl`, width 32": (("convnet", 32, 1, 28), {}),
    "`kl`, width 32, 32x32x3": (("convnet", 32, 3, 32), {}),
    "`kl`, width 128": (("convnet", 128, 1, 28), {}),
    "`kl`, AlexNet": (("alexnet", 128, 1, 28), {}),
}


def main() -> None:
    """Print a row for every case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20, help="of a run")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--attack-steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print("| hardening | torch, ms a step | runtime | torch / runtime |\n|---|---|---|---|")
    for name, ((architecture, width, channels, size), changes) in CASES.items():
        spec = make_spec(architecture, width, channels, size)
        settings = {"steps": args.steps, "attack_steps": args.attack_steps, **changes}
        in_torch, native = measure(spec, HardenConfig(**settings), args.repeats)
        print(f"| {name} | {in_torch:.1f} | {native:.1f} | {in_torch / native:.2f} |", flush=True)


def make_spec(architecture: str, width: int, channels: int, image_size: int) -> ModelSpec:
    """Return a network for ten classes."""
    return ModelSpec(
        architecture=architecture,
        channels=channels,
        image_size=image_size,
        classes=10,
        width=width,
        mean=(0.3,) * channels,
        std=(0.4,) * channels,
    )


def measure(spec: ModelSpec, config: HardenConfig, repeats: int) -> tuple[float, float]:
    """Return the milliseconds that a step takes in torch and on the runtime."""
    rng = np.random.default_rng(0)
    shape = (200, spec.channels, spec.image_size, spec.image_size)
    images, labels = rng.random(shape, dtype=np.float32), rng.integers(10, size=200)
    start = flat_parameters(build_model(spec, seed=0))
    taken: dict[float, list[float]] = {np.inf: [], 0.0: []}
    for repeat in range(repeats + 1):
        for worth, times in taken.items():
            native_engine.WORTH_AN_EXPORT = worth  # never, and always
            began_s = time.process_time()
            harden(spec, start, images, labels, config=config)
            if repeat:  # the first run exports
                times.append(1e3 * (time.process_time() - began_s) / config.steps)
    in_torch, native = (float(np.median(times)) for times in taken.values())
    return in_torch, native


if __name__ == "__main__":
    main()
