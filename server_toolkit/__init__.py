"""The server: ledger, rounds, distillation, hardening, evaluation and releases."""

from importlib.metadata import version

__version__ = version("trajsyn")
