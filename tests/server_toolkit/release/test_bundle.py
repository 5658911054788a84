import dataclasses
import hashlib

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_sdk.errors import SignatureError
from edge_sdk.protocol.messages import Release, ReleaseHealth, decode_message
from edge_sdk.protocol.signing import open_sealed
from edge_sdk.protocol.tensors import unpack
from models import ModelSpec
from models.networks import flat_parameters
from server_toolkit.errors import GateError
from server_toolkit.release import bundle as bundle_module
from server_toolkit.release.bundle import MAX_REFERENCE_IMAGES, build_release, export_pair
from server_toolkit.release.onnx_model import OnnxModel

KEY = Ed25519PrivateKey.generate()


@pytest.fixture(scope="module")
def pair(trained):
    return export_pair(
        trained.model.spec, flat_parameters(trained.model), trained.train_images[:100]
    )


@pytest.fixture(scope="module")
def bundle(trained, pair):
    return release_of(pair, trained)


def release_of(pair, trained):
    return build_release(
        pair,
        spec=trained.model.spec,
        name="arm",
        version=3,
        created_at_s=1000.0,
        expires_at_s=2000.0,
        reference_images=trained.train_images[:100],
        health=ReleaseHealth(min_accuracy=0.5, max_accuracy_drop=0.1),
        metrics={"clean": 0.97},
        key=KEY,
    )


def test_the_envelope_opens_with_the_key_to_the_manifest(bundle, trained):
    payload = open_sealed(bundle.envelope, KEY.public_key())
    manifest = decode_message(payload, (Release,))
    assert manifest == bundle.manifest
    assert ModelSpec.from_dict(manifest.model) == trained.model.spec
    assert (manifest.name, manifest.version, manifest.metrics["clean"]) == ("arm", 3, 0.97)
    assert 0 < manifest.metrics["onnx_max_abs_diff"] < 1e-4


def test_a_tampered_manifest_is_refused(bundle):
    tampered = bundle.envelope.replace(b'"version":3', b'"version":4')
    assert tampered != bundle.envelope
    with pytest.raises(SignatureError):
        open_sealed(tampered, KEY.public_key())


def test_a_manifest_of_another_key_is_refused(bundle):
    with pytest.raises(SignatureError):
        open_sealed(bundle.envelope, Ed25519PrivateKey.generate().public_key())


def test_the_manifest_binds_every_byte_of_every_file(bundle, tmp_path):
    bundle.write(tmp_path)
    manifest = bundle.manifest
    named = {
        "model_fp32.onnx": manifest.fp32.blob,
        "model_int8.onnx": manifest.int8.blob,
        "reference.safetensors": manifest.reference,
    }
    assert set(bundle.blobs) == set(named.values())
    for name, blob in named.items():
        data = bytearray((tmp_path / name).read_bytes())
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (blob.sha256, blob.size)
        data[len(data) // 2] ^= 1
        assert hashlib.sha256(data).hexdigest() != blob.sha256
    assert (tmp_path / "manifest.sealed").read_bytes() == bundle.envelope


def test_the_reference_holds_what_the_files_compute(bundle):
    n = MAX_REFERENCE_IMAGES
    reference = unpack(
        bundle.files["reference.safetensors"],
        {
            "images": ((n, 1, 16, 16), np.float32),
            "logits_fp32": ((n, 10), np.float32),
            "logits_int8": ((n, 10), np.float32),
        },
    )
    for precision in ("fp32", "int8"):
        # One image at a time, as a device may do; rounding must stay far below the tolerance.
        model = OnnxModel(bundle.files[f"model_{precision}.onnx"])
        logits = model.logits(reference["images"], batch=1)
        difference = np.abs(logits - reference[f"logits_{precision}"]).max()
        assert difference <= getattr(bundle.manifest, precision).max_abs_diff / 4


def test_tolerances_find_another_models_outputs(bundle, trained):
    images = trained.train_images[:MAX_REFERENCE_IMAGES]
    swapped = OnnxModel(bundle.files["model_int8.onnx"]).logits(images)
    expected = OnnxModel(bundle.files["model_fp32.onnx"]).logits(images)
    assert np.abs(swapped - expected).max() > bundle.manifest.fp32.max_abs_diff


def test_a_model_that_other_kernels_compute_differently_is_refused(pair, trained, monkeypatch):
    monkeypatch.setattr(bundle_module, "INT8_TOLERANCE", 1e-9)
    with pytest.raises(GateError, match="int8 model's outputs change by"):
        release_of(pair, trained)


def test_a_model_that_computes_nan_is_refused(pair, trained):
    spec, weights = trained.model.spec, flat_parameters(trained.model)
    weights[-1] = np.nan
    with pytest.raises(GateError, match="differs from torch by nan"):
        export_pair(spec, weights, trained.train_images[:10])


def test_the_same_weights_and_calibration_give_the_same_files(pair, trained):
    again = export_pair(
        trained.model.spec, flat_parameters(trained.model), trained.train_images[:100]
    )
    assert dataclasses.asdict(again) == dataclasses.asdict(pair)
