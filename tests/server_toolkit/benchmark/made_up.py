"""Rows with accuracies that a test chooses, and the smallest real plan."""

from dataclasses import replace

import numpy as np

from server_toolkit.benchmark.arms import ARMS
from server_toolkit.benchmark.presets import PRESETS
from server_toolkit.benchmark.results import Results, Row, SeedResult

IMAGES = 100


def seed_result(seed, *, clean=0.9, robust=0.5, passes=10, masked=0):
    def first(share):
        return np.arange(IMAGES) < round(share * IMAGES)

    return SeedResult(
        seed=seed,
        correct={"clean": first(clean), "pgd": first(robust), "autoattack": first(robust)},
        labels=np.arange(IMAGES) % 2,
        left_after={"pgd": 50, "fab-t": 50, "square": 50 - masked},
        passes=passes,
        device_cpu_s=1.0,
        server_s=2.0,
    )


def row(
    arm,
    *,
    clean=(0.9, 0.9, 0.9),
    robust=(0.5, 0.5, 0.5),
    server_images=0,
    dataset="mnist",
    network="convnet-16",
    partition="iid",
    epsilon=0.3,
    **others,
):
    pairs = zip(clean, robust, strict=True)
    return Row(
        dataset=dataset,
        network=network,
        partition=partition,
        epsilon=epsilon,
        arm=ARMS[arm],
        server_images=server_images,
        classes=2,
        seeds=tuple(
            seed_result(seed, clean=c, robust=r, **others) for seed, (c, r) in enumerate(pairs)
        ),
    )


def results(*rows):
    return Results(rows)


def tiny(**changes):
    return replace(PRESETS["tiny"], seeds=(0,), **changes)
