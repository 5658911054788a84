"""The ONNX files of a named model, made once for evaluation and release alike."""

from __future__ import annotations

from dataclasses import dataclass

from server_toolkit.distill.initial_images import initial_images
from server_toolkit.errors import LedgerError
from server_toolkit.release.bundle import OnnxPair, export_pair
from server_toolkit.release.onnx_model import Images
from server_toolkit.stages.workspace import Workspace

SYNTHETIC_IMAGES_PER_CLASS = 20


@dataclass(frozen=True)
class Calibration:
    """Images that set the int8 ranges, and what they are; none comes from a device."""

    images: Images
    source: str


def calibration_for(workspace: Workspace, name: str) -> Calibration:
    """Return the proxy set that the model was hardened on, or random shapes if there is none.

    Raises `LedgerError` if the proxy set is no longer the one that the model saw.
    """
    proxy = workspace.model_lineage(name).get("proxy")
    if proxy is not None:
        proxy_set, sha256 = workspace.proxy(proxy["name"])
        if sha256 != proxy["sha256"]:
            raise LedgerError(
                f"proxy set {proxy['name']} was made anew since {name} was hardened on it; "
                f"harden {name} again"
            )
        return Calibration(proxy_set.images, f"proxy set {proxy['name']}")
    images, _ = initial_images(
        "shapes",
        workspace.ledger.spec,
        images_per_class=SYNTHETIC_IMAGES_PER_CLASS,
        seed=0,
    )
    return Calibration(images, "random shapes")


def export_model(workspace: Workspace, name: str) -> tuple[OnnxPair, Calibration]:
    """Export a model to ONNX, fp32 and int8: the same model gives the same bytes every time.

    Raises `GateError` if the ONNX file computes something else than torch.
    """
    weights, _ = workspace.weights(name)
    calibration = calibration_for(workspace, name)
    return export_pair(workspace.ledger.spec, weights, calibration.images), calibration
