"""Recompute the demo's table from what it left, with nothing of `server_toolkit`.

    python benchmarks/recompute_demo.py demo-output --strong --json recomputed.json

Every arm's ONNX file is rebuilt as a torch function from the graph's own nodes and attacked anew.
The ledger and the devices' databases are read as plain SQLite. Ends with 1 if a reported figure
is further off than another random start of the attack explains, or if a check fails.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx_as_torch import Network, load_network
from plain_pgd import margin, pgd
from safetensors import safe_open
from safetensors.numpy import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from models import ModelSpec
from models.networks import build_model

SEEDS = (101, 102, 103)
MASKING_EPSILONS = (0.025, 0.05, 0.1, 0.2, 0.3, 0.5)
SAME_IMAGE = 2 / 255  # largest difference of two images that count as one


def run_onnx(path: Path, images: np.ndarray) -> np.ndarray:
    """Return what onnxruntime computes."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    logits: np.ndarray = session.run(None, {session.get_inputs()[0].name: images})[0]
    return logits


def hits(net: Network, x: Tensor, y: Tensor) -> np.ndarray:
    """Return for every image whether it is classified rightly."""
    with torch.no_grad():
        return (net(x).argmax(1) == y).numpy()


def spread(runs: list[np.ndarray]) -> float:
    """Return how far one more run's accuracy may be from the mean of these.

    Three deviations of that difference, each image's outcome a coin of its own, and one image.
    """
    votes = np.array(runs, float)
    variance = votes.var(axis=0, ddof=1).sum() * (1 + 1 / len(runs))
    return float((3 * math.sqrt(variance) + 1) / votes.shape[1])


class Checks:
    """Prints every comparison and remembers whether one failed."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def figure(self, what: str, ours: float, reported: float, tolerance: float) -> None:
        """Compare a recomputed figure with the reported one."""
        off = ours - reported
        self.row(
            what, abs(off) <= tolerance, f"{ours:.4f} {reported:.4f} {off:+.4f} {tolerance:.4f}"
        )

    def row(self, what: str, fine: bool, detail: str) -> None:
        """Record one check."""
        self.rows.append({"what": what, "ok": bool(fine), "detail": detail})
        print(f"{'ok   ' if fine else 'WRONG'} {what:44} {detail}", flush=True)


def check_arm(
    checks: Checks, output: Path, name: str, result: dict[str, Any], *, strong: bool
) -> dict[str, Any]:
    """Recompute one arm: parity, accuracies, and whether its robustness is a mirage."""
    test = np.load(output / "test.npz")
    images, labels = test["images"], torch.from_numpy(test["labels"])
    x = torch.from_numpy(images)
    reported, attack = result["arms"][name], result["attack"]
    epsilon, steps = attack["epsilon"], attack["steps"]
    path = output / "models" / f"{name}.fp32.onnx"
    net = load_network(path)
    fp32 = run_onnx(path, images)
    with torch.no_grad():
        walked = float(np.abs(net(x).numpy() - fp32).max())
    checks.row(f"{name}: walked graph = onnxruntime", walked < 1e-4, f"max |diff| {walked:.1e}")
    model = torch_model(output, name)
    with torch.no_grad():
        parity = float(np.abs(model(x).numpy() - fp32).max())
    clean = float((fp32.argmax(1) == labels.numpy()).mean())
    checks.figure(f"{name}: clean", clean, reported["clean"], 0)

    crafted = [
        pgd(net, x, labels, epsilon=epsilon, steps=steps, seed=s, step=epsilon / 4) for s in SEEDS
    ]
    runs = [hits(net, c, labels) for c in crafted]
    robust = float(np.mean(runs))
    checks.figure(f"{name}: pgd{steps}", robust, reported[f"pgd{steps}"], spread(runs))
    found = {"clean": clean, "pgd": robust, "pgd_seeds": [float(r.mean()) for r in runs]}
    if name == result["released_arm"]:
        int8 = output / "models" / f"{name}.int8.onnx"
        share = (run_onnx(int8, images).argmax(1) == labels.numpy()).mean()
        # Where the processor has other int8 instructions, an image at the border may flip.
        checks.figure(f"{name}: int8_clean", share, result["int8_clean"], 2 / len(images))
        moved = [run_onnx(int8, c.numpy()).argmax(1) == labels.numpy() for c in crafted]
        share = float(np.mean(moved))
        checks.figure(f"{name}: int8_pgd{steps}", share, result["int8_pgd20"], spread(moved))

    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(7)) * 2 - 1
    noisy = float(hits(net, (x + epsilon * noise).clamp(0, 1), labels).mean())
    curve = {}
    for e in MASKING_EPSILONS:
        ends = pgd(net, x, labels, epsilon=e, steps=steps, seed=1, step=e / 4)
        curve[e] = float(hits(net, ends, labels).mean())
    falls = all(
        b <= a + 0.01 for a, b in zip(curve.values(), list(curve.values())[1:], strict=False)
    )
    fine = falls and curve[max(curve)] < 0.05 and noisy >= robust
    text = " ".join(f"{e:g}:{100 * a:.1f}" for e, a in curve.items())
    checks.row(f"{name}: no sign of gradient masking", fine, f"{text} noise:{100 * noisy:.1f}")
    found |= {"curve": curve, "noise": noisy, "onnx_max_abs_diff": parity}
    if strong:
        for loss in (cross_entropy, margin):
            alive = np.logical_and.reduce(runs)
            for seed in range(5):
                fine_step = {"steps": 100, "step": epsilon / 10, "seed": seed, "loss": loss}
                alive &= hits(net, pgd(net, x, labels, epsilon=epsilon, **fine_step), labels)
            found[f"pgd100x5_{loss.__name__}"] = float(alive.mean())
            print(f"      {name}: PGD-100, 5 restarts, {loss.__name__}: {alive.mean():.4f}")
    return found


def torch_model(output: Path, name: str) -> torch.nn.Module:
    """Return an arm's torch network with the weights saved beside its ONNX file."""
    with safe_open(next((output / "proxy").glob("*.safetensors")), "numpy") as file:
        spec = ModelSpec.from_dict(json.loads(file.metadata()["trajsyn"])["model"])
    model = build_model(spec, seed=0).eval()
    saved = load_file(output / "models" / f"{name}.safetensors")
    model.load_state_dict({k: torch.from_numpy(v) for k, v in saved.items()})
    return model


def query(path: Path, text: str) -> list[tuple[Any, ...]]:
    """Read a database that nothing writes any more."""
    with closing(sqlite3.connect(path)) as database:
        return database.execute(text).fetchall()


def sha256(path: Path) -> str:
    """Return the hex sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_devices(checks: Checks, output: Path, result: dict[str, Any]) -> None:
    """Compare what the server says of its devices with their own databases and slots."""
    released = sha256(output / "models" / f"{result['released_arm']}.int8.onnx")
    on_release = bytes_up = 0
    for state in sorted(output.glob("devices/*/state")):
        value = dict(query(state / "state.db", "SELECT name, value FROM value"))
        slot = state / "slots" / value.get("active_slot", "none") / "model.onnx"
        bytes_up += int(value["bytes_up"])
        on_release += (
            int(value.get("active_version", 0)) == result["release_version"]
            and "probation_version" not in value
            and slot.exists()
            and sha256(slot) == released
        )
    checks.figure("devices_on_release", on_release, result["devices_on_release"], 0)
    ledger = output / "fleet" / "ledger.db"
    ((updates, devices, rounds),) = query(
        ledger, 'SELECT sum(size_bytes), count(DISTINCT device), max(round) + 1 FROM "update"'
    )
    fine = (devices, rounds) == (result["devices"], result["rounds"])
    checks.row("devices and rounds in the ledger", fine, f"{devices} devices, {rounds} rounds")
    checks.figure("update_bytes, as in the ledger", updates, result["update_bytes"], 0)
    fine = updates <= result["bytes_up"] <= bytes_up
    detail = f"ledger {updates} <= reported {result['bytes_up']} <= devices' own {bytes_up}"
    checks.row("bytes_up", fine, detail)


def check_images(checks: Checks, output: Path) -> None:
    """Which images were used for what, and that no test image is among them."""
    data = {n: np.load(output / "data" / f"{n}.npz")["images"] for n in ("devices", "server_set")}
    test = np.load(output / "test.npz")["images"]
    parts = data | {p.stem: load_file(p)["images"] for p in (output / "proxy").glob("*")}
    for name, images in parts.items():
        gap = min(float(np.abs(images - t).max(axis=(1, 2, 3)).min()) for t in test)
        checks.row(f"no test image in {name}", gap > SAME_IMAGE, f"nearest differs by {gap:.3f}")
    server_set = sha256(output / "data" / "server_set.npz")
    used = {}
    for kind, name, text in query(
        output / "fleet" / "ledger.db", "SELECT kind, name, lineage FROM artefact ORDER BY id"
    ):
        lineage = json.loads(text)
        used[kind, name] = lineage.get("server_set") or lineage.get("images")
    for (kind, name), source in sorted(used.items()):
        if kind != "evaluation":
            expected = server_set if "server_set" in name else None
            seen = "the server set" if source == server_set else source or "no real image"
            checks.row(f"lineage of {kind} {name}", source == expected, seen)


def main() -> int:
    """Recompute everything and say what differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="what `make demo` left")
    parser.add_argument(
        "--strong", action="store_true", help="also PGD-100 with 5 restarts on two losses"
    )
    parser.add_argument("--json", type=Path, help="write all figures here")
    args = parser.parse_args()
    if not (args.output / "result.json").is_file():
        parser.error(f"{args.output} holds no result.json; run `make demo` first")
    result = json.loads((args.output / "result.json").read_text(encoding="utf-8"))
    checks, arms = Checks(), {}
    print(f"{'':50} ours   reported difference allowed")
    for name in result["arms"]:
        arms[name] = check_arm(checks, args.output, name, result, strong=args.strong)
    largest = max(arm["onnx_max_abs_diff"] for arm in arms.values())
    reported = result["onnx_max_abs_diff"]
    # Measured on other images there, so only the order of magnitude can agree.
    fine = largest < 1e-4 and largest < 10 * reported
    checks.row("onnx_max_abs_diff", fine, f"{largest:.1e}, reported {reported:.1e}")
    check_devices(checks, args.output, result)
    check_images(checks, args.output)
    wrong = [row["what"] for row in checks.rows if not row["ok"]]
    if args.json:
        text = json.dumps({"arms": arms, "checks": checks.rows}, indent=1)
        args.json.write_text(text + "\n", encoding="utf-8")
    print(f"{len(wrong)} of {len(checks.rows)} checks failed" if wrong else "everything agrees")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
