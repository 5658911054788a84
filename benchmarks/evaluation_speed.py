"""Processor time of attacks on one image, in torch and on the devices' runtime, in one process.

The engines take turns; what is printed are medians. Exports are not counted. The labels are the
model's own answers and ε is too small to turn them, so every attack takes all its steps.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from hardening_speed import make_spec

from models import ModelSpec
from models.networks import build_model
from server_toolkit.robust import native_engine
from server_toolkit.robust.evaluation import judge

# Architecture, width, channels and image size.
NETWORKS = {
    "width 16, 28x28": ("convnet", 16, 1, 28),
    "width 16, 32x32x3": ("convnet", 16, 3, 32),
    "width 32, 32x32x3": ("convnet", 32, 3, 32),
    "width 128, 32x32x3": ("convnet", 128, 3, 32),
}
ATTACKS = ("pgd", "apgd_ce", "fab_t", "square", "autoattack")
EPSILON = 1e-6


def main() -> None:
    """Print a row for every network and attack."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS)[:3])
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| network | attack | torch, ms an image | runtime | torch / runtime |")
    print("|---|---|---|---|---|")
    for name in args.networks:
        spec = make_spec(*NETWORKS[name])
        for attack in ATTACKS:
            in_torch, native = measure(spec, attack, args.images, args.repeats)
            ratio = in_torch / native
            print(
                f"| {name} | {attack} | {in_torch:.1f} | {native:.1f} | {ratio:.2f} |", flush=True
            )


def measure(spec: ModelSpec, attack: str, count: int, repeats: int) -> tuple[float, float]:
    """Return the milliseconds that an image takes in torch and on the runtime."""
    model = build_model(spec, seed=0)
    rng = np.random.default_rng(0)
    shape = (count, spec.channels, spec.image_size, spec.image_size)
    images = rng.random(shape, dtype=np.float32)
    with torch.no_grad():
        labels = model(torch.from_numpy(images)).argmax(1).numpy()
    taken: dict[float, list[float]] = {np.inf: [], 0.0: []}
    for repeat in range(repeats + 1):
        for worth, times in taken.items():
            native_engine.WORTH_AN_EXPORT = worth  # never, and always
            began_s = time.process_time()
            judgement = judge(model, images, labels, epsilon=EPSILON, attacks=attack)
            if repeat:  # the first run exports
                times.append(1e3 * (time.process_time() - began_s) / count)
            if not judgement.robust.all():
                raise SystemExit(
                    f"{attack} turned an image at ε = {EPSILON}; the times mean nothing"
                )
    in_torch, native = (float(np.median(times)) for times in taken.values())
    return in_torch, native


if __name__ == "__main__":
    main()
