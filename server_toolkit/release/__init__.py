"""From a hardened model to the signed bundle that devices install: ONNX, int8, gate, manifest."""
