"""Importing torch on a command line: in quiet, and with a remedy where it is missing."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

from edge_sdk.errors import ConfigError


@contextlib.contextmanager
def without_notices(purpose: str) -> Iterator[None]:
    """Hide what torch says about its own code; a missing package raises `ConfigError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            # And what it says about kernels that nothing here uses.
            for name in ("torch.utils._pytree", "torchao"):
                logging.getLogger(name).setLevel(logging.ERROR)
            yield
    except ImportError as error:
        raise ConfigError(
            f"{purpose} needs torch and executorch ({error}); run this where the server is "
            "installed (`make setup` in a clone)"
        ) from error
