"""Evaluate: what a model and the ONNX files made from it are worth, clean and under attack."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_sdk.protocol.part_file import write_durably
from edge_sdk.training.dataset import Dataset
from models.networks import build_model, load_flat
from server_toolkit.errors import ConfigError
from server_toolkit.release.onnx_model import Images, Logits, OnnxModel
from server_toolkit.robust.evaluate import Predictor, evaluate
from server_toolkit.stages.onnx_files import export_model
from server_toolkit.stages.workspace import Progress, Workspace

log = logging.getLogger(__name__)

TEST_SET, SERVER_SET = "test_set", "server_set"


@dataclass(frozen=True)
class Judge:
    """The labelled images that a model is judged on; `kind` is test_set, server_set or proxy."""

    kind: str
    name: str
    sha256: str
    images: Images
    labels: npt.NDArray[np.int64]
    warning: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values: what, how many, and a warning unless it is a test set."""
        return {
            "kind": self.kind,
            "name": self.name,
            "sha256": self.sha256,
            "images": len(self.labels),
            "warning": self.warning,
        }


def run_evaluate(
    workspace: Workspace, name: str, *, judge: Judge, progress: Progress, device: str = "cpu"
) -> dict[str, Any]:
    """Judge model `name` on clean and adversarial images, write and return its evaluation.

    torch and both ONNX files see the same adversarial images, crafted on the torch model. Writes
    `evaluations/NAME.json` and `models/NAME.{fp32,int8}.onnx`. An evaluation that was made from
    the same model, images and settings is returned as it is.
    """
    settings = workspace.config.evaluate
    weights, weights_sha256 = workspace.weights(name)
    lineage = {
        "stage": "evaluate",
        "weights": weights_sha256,
        "model": workspace.model_lineage(name),
        "judged_on": judge.to_dict(),
        "settings": settings.model_dump(),
    }
    path = workspace.path("evaluation", name)
    if workspace.made_from("evaluation", name, lineage):
        log.info("%s is evaluated already: %s", name, path)
        return read_evaluation(workspace, name)

    model = build_model(workspace.ledger.spec, seed=0)
    load_flat(model, weights)
    pair, calibration = export_model(workspace, name)
    files = {"fp32": pair.fp32, "int8": pair.int8}
    conditions = 1 + 2 * len(settings.epsilons)
    predictors: dict[str, Predictor] = {
        f"onnx_{precision}": OnnxModel(data).logits for precision, data in files.items()
    }
    report = evaluate(
        model,
        judge.images,
        judge.labels,
        epsilons=settings.epsilons,
        steps=settings.steps,
        seed=settings.seed,
        predictors=_counting(predictors, conditions * len(judge.labels), progress),
        device=device,
    )
    result = {
        "name": name,
        "created_at_s": time.time(),
        "judged_on": judge.to_dict(),
        "attack": {"norm": "linf", **settings.model_dump()},
        "weights_sha256": weights_sha256,
        "onnx_max_abs_diff": pair.max_abs_diff,
        "int8_calibrated_on": calibration.source,
        "files": {
            precision: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
            for precision, data in files.items()
        },
        "scores": report.to_dict()["scores"],
    }
    for precision, data in files.items():
        onnx = workspace.path("model", name).with_name(f"{name}.{precision}.onnx")
        onnx.parent.mkdir(exist_ok=True)
        write_durably(onnx, data)
    path.parent.mkdir(exist_ok=True)
    write_durably(path, json.dumps(result, indent=1).encode())
    workspace.record("evaluation", name, lineage)
    return result


def read_evaluation(workspace: Workspace, name: str) -> dict[str, Any]:
    """Return the recorded evaluation of a model; raises `LedgerError` if there is none."""
    path, _ = workspace.read("evaluation", name)
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def score_of(
    evaluation: dict[str, Any], *, predictor: str, attack: str = "clean", epsilon: float = 0.0
) -> dict[str, Any]:
    """Return one score of an evaluation (`accuracy`, `low`, `high`, `count`, ...)."""
    for score in evaluation["scores"]:
        if (score["predictor"], score["attack"], score["epsilon"]) == (predictor, attack, epsilon):
            found: dict[str, Any] = score
            return found
    raise ConfigError(
        f"the evaluation of {evaluation['name']} has no {attack} at epsilon {epsilon}; "
        "add it to [evaluate] epsilons and evaluate again"
    )


def find_judge(workspace: Workspace, names: list[str], *, on: str | None = None) -> Judge:
    """Choose the images that all of the models `names` are judged on.

    `on` is "test_set", "server_set" or a proxy set's name. Without it: the test set; else the
    server set where no model was made with it; else a proxy set, whose accuracy says little.
    Raises `ConfigError` where nothing can judge them.
    """
    lineages = [workspace.model_lineage(name) for name in names]
    seen_server_set = any(_used_server_set(workspace, lineage) for lineage in lineages)
    proxies = [lineage["proxy"]["name"] for lineage in lineages if lineage.get("proxy")]
    test_set, server_set = workspace.test_set_path(), workspace.server_set_path()
    if on is None:
        if test_set is not None and test_set.exists():
            on = TEST_SET
        elif server_set is not None and server_set.exists() and not seen_server_set:
            on = SERVER_SET
        elif proxies:
            on = proxies[0]
        else:
            raise ConfigError(
                "there is nothing to judge on: name a test set in [data] test_set, or choose "
                "server_set or a proxy set with --on"
            )
    path = {TEST_SET: test_set, SERVER_SET: server_set}.get(on)
    if on in (TEST_SET, SERVER_SET):
        if path is None:
            raise ConfigError(f"{workspace.config.file}: [data] {on} is not set")
        data, sha256 = workspace.images(path)
        warning = None
        if on == SERVER_SET:
            part = "images it was made with" if seen_server_set else "the server's own few images"
            warning = f"no test set: judged on {part}"
        return _judge(on, path.name, sha256, data, warning)
    proxy, sha256 = workspace.proxy(on)
    warning = "no test set: judged on synthetic images, these numbers say little about real ones"
    return Judge("proxy", on, sha256, proxy.images, proxy.hard_labels, warning)


def _judge(kind: str, name: str, sha256: str, data: Dataset, warning: str | None) -> Judge:
    if len(data) == 0:
        raise ConfigError(f"{name} holds no images")
    return Judge(kind, name, sha256, data.images, data.labels, warning)


def _used_server_set(workspace: Workspace, lineage: dict[str, Any]) -> bool:
    if lineage.get("images") is not None:
        return True
    if lineage.get("proxy") is None:
        return False
    proxy = workspace.ledger.artefact("proxy", lineage["proxy"]["name"])
    return proxy.lineage.get("server_set") is not None


def _counting(
    predictors: dict[str, Predictor], total: int, progress: Progress
) -> dict[str, Predictor]:
    """Report progress whenever the last of the predictors has judged a batch."""
    *_, last = predictors
    predict, done = predictors[last], 0

    def counted(images: Images) -> Logits:
        nonlocal done
        logits = predict(images)
        done += len(images)
        progress(done, total, "images attacked and judged")
        return logits

    return {**predictors, last: counted}
