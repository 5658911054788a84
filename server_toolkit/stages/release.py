"""Release: gate, ONNX files, manifest; recorded in the ledger, from where `serve` publishes it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_sdk.protocol.messages import (
    Release,
    ReleaseHealth,
    decode_message,
)
from edge_sdk.protocol.part_file import write_durably
from edge_sdk.protocol.signing import load_private_key, unverified_payload
from server_toolkit.errors import GateError, LedgerError
from server_toolkit.ledger.schema import Release as ReleaseRow
from server_toolkit.locks import try_lock
from server_toolkit.release.bundle import OnnxPair, build_release
from server_toolkit.release.gate import ArmScores, GateLimits, check_gate
from server_toolkit.stages.evaluate import read_evaluation, score_of
from server_toolkit.stages.harden import HardenSettings
from server_toolkit.stages.onnx_files import export_model
from server_toolkit.stages.workspace import FEDAVG, Workspace

log = logging.getLogger(__name__)

KEY_FILE = "keys/server.key"
SUMMARY_FILE = "release.json"


@dataclass(frozen=True)
class Released:
    """A version that is in the ledger now, and the missed limits that --force overrode, if any."""

    manifest: Release
    directory: Path
    overridden: str | None


def run_release(workspace: Workspace, name: str, *, force: bool = False) -> Released:
    """Sign and record model `name` as the next version; `serve` publishes it within a second.

    Raises `GateError` unless its evaluation meets [release] beside that of "fedavg", on the same
    images and attack, and is of exactly these ONNX files; robust means PGD at [harden] epsilon.
    With `force` the release is made all the same, and what it misses is written into it. Raises
    `LedgerError` while another release is being made here.
    """
    lock = try_lock(workspace.ledger.directory / "release.lock")
    if lock is None:
        raise LedgerError("another release is being made in this directory; wait for its end")
    try:
        return _release(workspace, name, force=force)
    finally:
        os.close(lock)


def _release(workspace: Workspace, name: str, *, force: bool) -> Released:
    config = workspace.config
    key = load_private_key(workspace.ledger.directory / KEY_FILE)
    pair, calibration = export_model(workspace, name)
    overridden = None
    try:
        _check(workspace, name, pair)
    except (GateError, LedgerError) as error:
        if not force:
            raise GateError(f"{name} may not be released: {error}") from error
        overridden = str(error)
        log.warning("released all the same (--force): %s", overridden)

    newest = workspace.ledger.latest_release()
    version = 1 if newest is None else newest.version + 1
    now = time.time()
    bundle = build_release(
        pair,
        spec=workspace.ledger.spec,
        name=config.release.name,
        version=version,
        created_at_s=now,
        expires_at_s=now + config.release.expires_after_s,
        reference_images=calibration.images,
        health=ReleaseHealth(**config.release.health.model_dump()),
        metrics={**_metrics(workspace, name, pair), "forced": float(overridden is not None)},
        key=key,
    )
    directory = workspace.ledger.directory / "releases" / str(version)
    bundle.write(directory)
    summary = {
        "version": version,
        "model": name,
        "model_lineage": workspace.model_lineage(name),
        "calibrated_on": calibration.source,
        "overridden": overridden,
        "metrics": bundle.manifest.metrics,
    }
    write_durably(directory / SUMMARY_FILE, json.dumps(summary, indent=1).encode())
    for data in bundle.files.values():
        workspace.ledger.blobs.put(data)
    workspace.ledger.record_release(version, config.release.name, bundle.envelope, bundle.blobs)
    return Released(bundle.manifest, directory, overridden)


def is_released(workspace: Workspace, name: str) -> bool:
    """Say whether the newest release ships exactly the files that were evaluated for `name`."""
    newest = workspace.ledger.latest_release()
    return (
        newest is not None
        and manifest_of(newest).int8.blob.sha256
        == (read_evaluation(workspace, name)["files"]["int8"]["sha256"])
    )


def manifest_of(row: ReleaseRow) -> Release:
    """Return the manifest of a recorded release."""
    manifest = decode_message(unverified_payload(row.envelope), (Release,))
    assert isinstance(manifest, Release)
    return manifest


def _check(workspace: Workspace, name: str, pair: OnnxPair) -> None:
    """Raise `GateError` or `LedgerError` unless these files were evaluated and pass the gate."""
    arm, fedavg = read_evaluation(workspace, name), read_evaluation(workspace, FEDAVG)
    if not _is_of(arm, pair):
        raise GateError(f"the evaluation of {name} is of other files; evaluate it again")
    if fedavg["weights_sha256"] != workspace.weights(FEDAVG)[1]:
        raise GateError(f"the evaluation of {FEDAVG} is of older weights; evaluate it again")
    for field in ("judged_on", "attack"):
        if {**arm[field], "warning": None} != {**fedavg[field], "warning": None}:
            raise GateError(
                f"{name} and {FEDAVG} were evaluated with another {field}; evaluate both in one "
                f"command: server-toolkit evaluate --name {name} --name {FEDAVG}"
            )
    config = workspace.config
    limits = GateLimits(
        min_clean=config.release.min_clean,
        max_clean_drop=config.release.max_clean_drop,
        min_robust_gain=config.release.min_robust_gain,
    )
    epsilon = config.settings_of("harden", HardenSettings).epsilon
    check_gate(_arm_scores(arm, epsilon), _arm_scores(fedavg, epsilon), limits)


def _is_of(evaluation: dict[str, Any], pair: OnnxPair) -> bool:
    return all(
        evaluation["files"][precision]["sha256"] == hashlib.sha256(data).hexdigest()
        for precision, data in (("fp32", pair.fp32), ("int8", pair.int8))
    )


def _arm_scores(evaluation: dict[str, Any], epsilon: float) -> ArmScores:
    """Return the shares that the gate compares: clean, and PGD at `epsilon`."""

    def clean(predictor: str) -> float:
        return float(score_of(evaluation, predictor=predictor)["accuracy"])

    def robust(predictor: str) -> float:
        score = score_of(evaluation, predictor=predictor, attack="pgd", epsilon=epsilon)
        return float(score["accuracy"])

    return ArmScores(
        clean=clean("onnx_fp32"),
        robust=robust("onnx_fp32"),
        int8_clean=clean("onnx_int8"),
        int8_robust=robust("onnx_int8"),
    )


def _metrics(workspace: Workspace, name: str, pair: OnnxPair) -> dict[str, float]:
    """Return the accuracies that travel in the manifest; none if the files were not evaluated."""
    try:
        evaluation = read_evaluation(workspace, name)
    except LedgerError:
        return {}
    if not _is_of(evaluation, pair):
        return {}
    metrics = {}
    for precision in ("fp32", "int8"):
        for score in evaluation["scores"]:
            if score["predictor"] == f"onnx_{precision}":
                condition = score["attack"]
                if score["epsilon"]:
                    condition += f"{score['steps']}@{score['epsilon']:g}"
                metrics[f"{precision}_{condition}"] = float(score["accuracy"])
    return metrics
