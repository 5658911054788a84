"""Everything that can go wrong on the server, sorted by who has to act."""

from __future__ import annotations


class ServerError(Exception):
    """Base of all errors of the server toolkit; `exit_code` is what a command ends with."""

    exit_code = 1


class ConfigError(ServerError):
    """A configuration file, option or data file that the user has to correct."""

    exit_code = 2


class LedgerError(ServerError):
    """The ledger or one of its blobs is missing, damaged or does not hold what was asked for."""

    exit_code = 3


class RefusedUpdateError(ServerError):
    """An update from a device that does not count; the message is the verdict's reason."""

    exit_code = 4


class DistillationError(ServerError):
    """Trajectories that nothing can be distilled from, or a run that diverged for good."""

    exit_code = 5


class HardeningError(ServerError):
    """Adversarial training that diverged."""

    exit_code = 5


class GateError(ServerError):
    """A model that may not be released: its parity or its evaluation misses the configured gate."""

    exit_code = 6
