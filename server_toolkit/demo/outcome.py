"""What the demo leaves: `result.json`, the table, `report.html` and every arm's model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from edge_sdk.protocol.part_file import write_durably
from edge_sdk.protocol.updates import encode_weights
from edge_sdk.training.dataset import Dataset
from edge_sdk.training.sources import load_npz
from models.networks import build_model, load_flat
from server_toolkit.config import load_config
from server_toolkit.demo.digits import DemoFiles
from server_toolkit.demo.settings import (
    ARMS,
    CONTROLS,
    DEVICES,
    EPSILON,
    EPSILONS,
    MAIN_ARM,
    ROUNDS,
    STEPS,
)
from server_toolkit.distill.proxy_set import ProxySet
from server_toolkit.ledger import Ledger
from server_toolkit.release.onnx_model import OnnxModel
from server_toolkit.report.figures import Point
from server_toolkit.report.loop_page import (
    Arm,
    DeviceRow,
    ImageSet,
    LoopReport,
    render_loop_page,
)
from server_toolkit.stages.evaluate import read_evaluation, score_of
from server_toolkit.stages.workspace import Workspace

NOTES = [
    "Test images were seen by no device and not by the server; intervals are 95 % Wilson "
    "intervals over them, for this one run.",
    "PGD-20 is white-box on the torch model; stronger attacks can only leave less accuracy.",
    "Devices are processes on one machine here, which they share with the server: their times do "
    "not say how fast a Raspberry Pi is.",
]


def write_outcome(
    output: Path, fleet: Path, files: DemoFiles, console: Console, *, wall_s: float
) -> None:
    """Write the files, print the table."""
    workspace = Workspace.open(load_config(fleet / "server.toml"))
    evaluations = {name: read_evaluation(workspace, name) for name in ARMS}
    ledger = workspace.ledger
    test = load_npz(files.test).fit_to(ledger.spec)
    by_round = accuracy_by_round(ledger, test)
    devices = _device_rows(ledger, files.images_per_device)
    onnx_max_abs_diff = max(_onnx_max_abs_diff(workspace, name, test) for name in ARMS)
    result = _result(evaluations, ledger, devices, by_round, onnx_max_abs_diff, wall_s)
    write_durably(output / "result.json", json.dumps(result, indent=1).encode())
    _collect(workspace, files, output)
    page = render_loop_page(
        LoopReport(
            title="TrajSyn: one whole loop on scikit-learn's digits",
            summary=_summary(result),
            epsilon=EPSILON,
            arms=[_arm(name, evaluations[name]) for name in ARMS],
            image_sets=_image_sets(workspace, files),
            accuracy_by_round=by_round,
            devices=devices,
            notes=[*NOTES, _verdict(result)],
        ),
        main_arm=MAIN_ARM,
    )
    write_durably(output / "report.html", page.encode())
    _print_table(console, result, output)


def accuracy_by_round(ledger: Ledger, test: Dataset) -> list[float]:
    """Return the test accuracy of every round's starting weights, the final ones last."""
    model = build_model(ledger.spec, seed=0)
    images, labels = torch.from_numpy(test.images), torch.from_numpy(test.labels)
    accuracies = []
    for number in range(ledger.latest_round() + 1):
        load_flat(model, ledger.global_weights(number))
        with torch.no_grad():
            right = model(images).argmax(1) == labels
        accuracies.append(float(right.double().mean()))
    return accuracies


def _onnx_max_abs_diff(workspace: Workspace, name: str, test: Dataset) -> float:
    """Return how far the fp32 ONNX file's logits of the test images are from torch's, at most."""
    file = workspace.path("model", name).with_name(f"{name}.fp32.onnx")
    model = build_model(workspace.ledger.spec, seed=0)
    load_flat(model, workspace.weights(name)[0])
    with torch.no_grad():
        expected = model(torch.from_numpy(test.images)).numpy()
    return float(np.abs(OnnxModel(file.read_bytes()).logits(test.images) - expected).max())


def _result(
    evaluations: Mapping[str, Any],
    ledger: Ledger,
    devices: list[DeviceRow],
    by_round: list[float],
    onnx_max_abs_diff: float,
    wall_s: float,
) -> dict[str, Any]:
    release = ledger.latest_release()
    assert release is not None
    main = evaluations[MAIN_ARM]
    return {
        "dataset": "scikit-learn digits, enlarged to 16x16",
        "devices": len(DEVICES),
        "rounds": ROUNDS,
        "attack": {"norm": "linf", "epsilon": EPSILON, "steps": STEPS},
        "test_images": main["judged_on"]["images"],
        "arms": {name: _arm_result(evaluations[name]) for name in ARMS},
        "released_arm": MAIN_ARM,
        "release_version": release.version,
        "onnx_max_abs_diff": onnx_max_abs_diff,
        "int8_clean": score_of(main, predictor="onnx_int8")["accuracy"],
        "int8_pgd20": _robust(main, "onnx_int8")["accuracy"],
        "devices_on_release": sum(
            row.verdict == "running" and row.version == release.version
            for row in {row.device: row for row in ledger.installs()}.values()
        ),
        "bytes_up": sum(d.bytes_up for d in devices),
        "bytes_down": sum(d.bytes_down for d in devices),
        "update_bytes": sum(row.size_bytes for row in ledger.updates()),
        "accuracy_by_round": by_round,
        "wall_s": round(wall_s, 1),
    }


def _arm_result(evaluation: dict[str, Any]) -> dict[str, Any]:
    clean, robust = score_of(evaluation, predictor="torch"), _robust(evaluation, "torch")
    return {
        "clean": clean["accuracy"],
        "clean_95": [clean["low"], clean["high"]],
        "pgd20": robust["accuracy"],
        "pgd20_95": [robust["low"], robust["high"]],
    }


def _robust(evaluation: dict[str, Any], predictor: str) -> dict[str, Any]:
    return score_of(evaluation, predictor=predictor, attack="pgd", epsilon=EPSILON)


def _arm(name: str, evaluation: dict[str, Any]) -> Arm:
    def point(attack: str, epsilon: float) -> Point:
        score = score_of(evaluation, predictor="torch", attack=attack, epsilon=epsilon)
        return score["accuracy"], score["low"], score["high"]

    clean = point("clean", 0.0)
    return Arm(
        name=name,
        meaning=ARMS[name],
        is_control=name in CONTROLS,
        clean=clean,
        robust=point("pgd", EPSILON),
        curve={0.0: clean} | {e: point("pgd", e) for e in EPSILONS},
    )


def _device_rows(ledger: Ledger, images: Mapping[str, int]) -> list[DeviceRow]:
    statuses = {row.device: row for row in ledger.statuses()}
    installs = {row.device: row for row in ledger.installs()}
    rows = []
    for name in DEVICES:
        updates = [row for row in ledger.updates() if row.device == name]
        install, status = installs[name], statuses[name]
        rows.append(
            DeviceRow(
                device=name,
                images=images[name],
                bytes_up=status.bytes_up,
                bytes_down=status.bytes_down,
                training_s=sum(row.wall_s for row in updates),
                training_cpu_s=sum(row.cpu_s for row in updates),
                running=f"version {install.active_version}, {install.precision}",
                local_accuracy=install.local_accuracy,
                inference_ms=install.inference_ms,
            )
        )
    return rows


def _image_sets(workspace: Workspace, files: DemoFiles) -> list[ImageSet]:
    def proxy(name: str, title: str, meaning: str) -> ImageSet:
        proxy_set, _ = workspace.proxy(name)
        return _proxy_images(proxy_set, title, meaning)

    real = load_npz(files.server_set)
    return [
        proxy("trajsyn_noise", "trajsyn_noise", "distilled from weights; no real image was used"),
        proxy(MAIN_ARM, MAIN_ARM, "distilled from weights, starting at the server's images"),
        proxy("noise_only", "where trajsyn_noise started", "before anything was distilled"),
        ImageSet(
            title="the server's own images",
            meaning="five a class, held out from the devices",
            images=real.images,
            labels=real.labels,
        ),
    ]


def _proxy_images(proxy: ProxySet, title: str, meaning: str) -> ImageSet:
    labels = np.asarray(proxy.hard_labels, np.int64)
    return ImageSet(title=title, meaning=meaning, images=proxy.images, labels=labels)


def _collect(workspace: Workspace, files: DemoFiles, output: Path) -> None:
    """Put what is needed to recompute the table side by side."""
    (output / "models").mkdir(exist_ok=True)
    (output / "proxy").mkdir(exist_ok=True)
    for name in ARMS:
        for precision in ("fp32", "int8"):
            file = f"{name}.{precision}.onnx"
            shutil.copy2(workspace.ledger.directory / "models" / file, output / "models" / file)
        weights, _ = workspace.weights(name)
        data = encode_weights(weights, workspace.ledger.layout)
        write_durably(output / "models" / f"{name}.safetensors", data)
    for path in (workspace.ledger.directory / "proxy").glob("*.safetensors"):
        shutil.copy2(path, output / "proxy" / path.name)
    shutil.copy2(files.test, output / "test.npz")


def _summary(result: dict[str, Any]) -> list[tuple[str, str]]:
    main, plain = result["arms"][MAIN_ARM], result["arms"]["fedavg"]
    return [
        ("devices on the release", f"{result['devices_on_release']} of {result['devices']}"),
        ("federated rounds", str(result["rounds"])),
        (f"PGD-20 at ε = {EPSILON:g}", f"{_percent(plain['pgd20'])} → {_percent(main['pgd20'])}"),
        ("clean", f"{_percent(plain['clean'])} → {_percent(main['clean'])}"),
        ("int8 on the devices, clean", _percent(result["int8_clean"])),
        ("sent by all devices", f"{result['bytes_up'] / 1e6:.2f} MB"),
        ("whole loop", f"{result['wall_s']:.0f} s"),
    ]


def _verdict(result: dict[str, Any]) -> str:
    """Return what the synthetic images added to the real ones, in words."""
    main, control = result["arms"][MAIN_ARM], result["arms"]["server_set_only"]
    clean, robust = (100 * (main[key] - control[key]) for key in ("clean", "pgd20"))
    overlap = main["pgd20_95"][0] <= control["pgd20_95"][1]
    return (
        "The controls use the same hardening. Against the server's real images alone, "
        f"{MAIN_ARM} has {robust:+.1f} points under attack and {clean:+.1f} clean"
        + ("; the intervals overlap, so this run does not tell them apart." if overlap else ".")
    )


def _print_table(console: Console, result: dict[str, Any], output: Path) -> None:
    table = Table()
    for heading in ("arm", "clean", f"PGD-20, ε = {EPSILON:g}"):
        table.add_column(heading, no_wrap=True)
    for name in ARMS:
        arm = result["arms"][name]
        style = "bold" if name == MAIN_ARM else "dim" if name in CONTROLS else ""
        cells = (
            f"{_percent(arm['clean'])} ({_range(arm['clean_95'])})",
            f"{_percent(arm['pgd20'])} ({_range(arm['pgd20_95'])})",
        )
        table.add_row(name, *cells, style=style)
    console.print(table)
    for name, meaning in ARMS.items():
        console.print(f"  {name}: {meaning}", style="dim", highlight=False)
    console.print(
        f"{result['devices_on_release']} of {result['devices']} devices run version "
        f"{result['release_version']} (int8: {_percent(result['int8_clean'])} clean, "
        f"{_percent(result['int8_pgd20'])} under the transferred attack) after "
        f"{result['wall_s']:.0f} s; they sent {result['bytes_up']:,} bytes"
    )
    for name in ("report.html", "result.json", "models", "proxy", "test.npz", "fleet/ledger.db"):
        console.print(f"  {output / name}", soft_wrap=True)


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _range(interval: list[float]) -> str:
    return f"{100 * interval[0]:.1f}-{100 * interval[1]:.1f}"
