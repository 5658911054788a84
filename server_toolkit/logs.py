"""Logging of commands and of the processes that they start."""

from __future__ import annotations

import logging
import sys

CHATTY = ("alembic", "amqtt", "onnx_ir", "onnxscript", "paho")
ALARMIST = ("torchao", "torch.utils._pytree")  # they warn of GPU code that we never call


def log_to_stderr(level: int) -> None:
    """Write messages from `level` on to standard error, and less of some libraries."""
    logging.basicConfig(
        level=level, format="%(asctime)s %(levelname)-7s %(message)s", stream=sys.stderr
    )
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ALARMIST:
        logging.getLogger(name).setLevel(logging.ERROR)
