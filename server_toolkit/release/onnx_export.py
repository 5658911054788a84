"""A torch network as one small, deterministic ONNX file, and how far its outputs are off."""

from __future__ import annotations

import logging
import warnings

import numpy as np
import onnx
import torch

from models.networks import Network
from server_toolkit.errors import GateError
from server_toolkit.release.onnx_model import INPUT, OUTPUT, Images, OnnxModel

OPSET = 21  # onnxruntime >= 1.18; from here GroupNormalization has one scale a channel
# float32 kernels that sum in another order differ by about 1e-6 of the logits' size.
PARITY_TOLERANCE = 1e-4
PARITY_BATCHES = (1, 7, 64)


def export_onnx(model: Network) -> bytes:
    """Return `model` as an ONNX file: the same bytes for the same weights.

    Input `images` `(batch, C, H, W) float32 in [0, 1]` with any batch size, output `logits`
    `(batch, classes) float32`; normalisation is inside. Raises `onnx.checker.ValidationError` if
    the exporter made an invalid graph.
    """
    spec = model.spec
    example = torch.zeros(2, spec.channels, spec.image_size, spec.image_size)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # complains about missing torchvision
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        program = torch.onnx.export(
            model.eval(),
            (example,),
            dynamo=True,
            external_data=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    _use_instance_norm(proto.graph)
    _strip_notes(proto)
    onnx.checker.check_model(proto, full_check=True)
    return bytes(proto.SerializeToString(deterministic=True))


def parity(model: Network, data: bytes, images: Images) -> float:
    """Return the largest |torch − ONNX| of the logits over several batch sizes.

    Compares on `images` `(N, C, H, W)` and on uniform noise. Raises `GateError` above
    `PARITY_TOLERANCE` times the largest logit (at least 1).
    """
    noise = np.random.default_rng(0).random((64, *images.shape[1:]), np.float32)
    both = np.concatenate([images[:256], noise])
    with torch.no_grad():
        expected = model.eval()(torch.from_numpy(both)).numpy()
    onnx_model = OnnxModel(data)
    difference = max(
        float(np.abs(onnx_model.logits(both, batch=batch) - expected).max())
        for batch in PARITY_BATCHES
    )
    limit = PARITY_TOLERANCE * max(1.0, float(np.abs(expected).max()))
    if not difference <= limit:  # NaN is refused too
        raise GateError(
            f"the exported ONNX differs from torch by {difference:.3g}, more than {limit:.3g}; "
            "it must not be shipped"
        )
    return difference


def _use_instance_norm(graph: onnx.GraphProto) -> None:
    """Name a GroupNormalization with as many groups as channels what it is.

    onnxruntime has one kernel for InstanceNormalization and expands the other into eight nodes.
    """
    channels = {t.name: t.dims[0] for t in graph.initializer if t.dims}
    for node in graph.node:
        groups = [a.i for a in node.attribute if a.name == "num_groups"]
        if node.op_type == "GroupNormalization" and groups == [channels.get(node.input[1])]:
            epsilon = [a for a in node.attribute if a.name == "epsilon"]
            node.op_type = "InstanceNormalization"
            node.ClearField("attribute")
            node.attribute.extend(epsilon)


def _strip_notes(proto: onnx.ModelProto) -> None:
    """Remove stack traces and file names of the exporting machine."""
    graph = proto.graph
    groups = (graph.node, graph.initializer, graph.value_info, graph.input, graph.output)
    for item in (proto, graph, *(item for group in groups for item in group)):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
