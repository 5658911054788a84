"""How many bytes a real update takes in every encoding, and what it loses, at several widths.

One device trains some rounds on its own; each update is encoded with the error feedback of the
one before. Bytes are compared with the raw float32 tensor, four bytes a parameter. The error is
the norm of what one encoding loses over the norm of what was to be sent.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from edge_sdk.protocol.updates import decode_update, encode_update
from edge_sdk.training import train
from models import ModelSpec, layout_of
from server_toolkit.datasets import load_dataset

MEAN, STD = 0.2860, 0.3530  # of Fashion-MNIST's training images
ENCODINGS = ("fp32", "int8", "int4", "topk-0.1", "topk-0.05", "topk-0.01", "topk-0.001")


def real_updates(spec: ModelSpec, args: argparse.Namespace) -> list[np.ndarray]:
    """Return the updates of consecutive rounds, flat float32."""
    from edge_sdk.export import training_program
    from models.networks import build_model, flat_parameters

    program = training_program(spec)
    images = load_dataset("fashion_mnist", args.data).train.fit_to(spec)
    weights, updates = flat_parameters(build_model(spec, seed=0)), []
    for number in range(args.rounds):
        share = np.arange(number * args.images, (number + 1) * args.images)
        result = train(
            program,
            weights,
            images.subset(share),
            epochs=1,
            batch_size=32,
            learning_rate=0.05,
            momentum=0.9,
            weight_decay=0.0,
            proximal_mu=0.0,
            seed=number,
            threads=1,
        )
        updates.append(result.weights - weights)
        weights = result.weights
    return updates


def measure(updates: list[np.ndarray], spec: ModelSpec, encoding: str) -> dict[str, Any]:
    """Return bytes over raw bytes, the error, and milliseconds to encode and to decode."""
    layout, residual = layout_of(spec), None
    parts, errors, encode_ms, decode_ms = [], [], [], []
    for update in updates:
        began = time.perf_counter()
        encoded = encode_update(update, layout, encoding, residual=residual)
        between = time.perf_counter()
        decoded = decode_update(encoded.data, layout, encoding)
        ended = time.perf_counter()
        residual = encoded.residual
        parts.append(len(encoded.data) / update.nbytes)
        errors.append(float(np.linalg.norm(residual) / np.linalg.norm(decoded + residual)))
        encode_ms.append(1000 * (between - began))
        decode_ms.append(1000 * (ended - between))
    return {
        "encoding": encoding,
        "width": spec.width,
        "parameters": layout.size,
        "bytes_of_fp32": float(np.mean(parts)),
        "largest": max(parts),
        "relative_error": float(np.mean(errors)),
        "encode_ms": min(encode_ms),
        "decode_ms": min(decode_ms),
    }


def main() -> None:
    """Measure every width and encoding; print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="directory of the four IDX files")
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64, 128])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--images", type=int, default=500, help="a round")
    args = parser.parse_args()
    rows = []
    print(
        "| width | parameters | encoding | bytes / raw fp32 | largest | error | encode, decode ms |"
    )
    print("|---|---|---|---|---|---|---|")
    for width in args.widths:
        spec = ModelSpec(
            channels=1, image_size=32, classes=10, width=width, mean=(MEAN,), std=(STD,)
        )
        updates = real_updates(spec, args)
        for encoding in ENCODINGS:
            r = measure(updates, spec, encoding)
            rows.append(r)
            print(
                f"| {width} | {r['parameters']:,} | {encoding} | {r['bytes_of_fp32']:.4f} | "
                f"{r['largest']:.4f} | {r['relative_error']:.4f} | {r['encode_ms']:.1f}, "
                f"{r['decode_ms']:.1f} |",
                flush=True,
            )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
