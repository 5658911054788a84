"""Everything that can go wrong on a device, sorted by who has to act."""

from __future__ import annotations


class EdgeError(Exception):
    """Base of all errors of the edge SDK; `exit_code` is what a command ends with."""

    exit_code = 1


class ConfigError(EdgeError):
    """A configuration file, option or data set that the user has to correct."""

    exit_code = 2


class UnsupportedLayerError(EdgeError):
    """A network holds a layer that no training program can be exported for."""

    exit_code = 3


class GradientGateError(EdgeError):
    """An exported program's gradients are too far from float64 autograd."""

    exit_code = 4


class InferenceGateError(EdgeError):
    """An exported inference program's logits are too far from the network's."""

    exit_code = 4


class RuntimeLibraryError(EdgeError):
    """The native library is missing, does not load, or refused a program."""

    exit_code = 5


class ProtocolError(EdgeError):
    """A message, tensor file or chunk from the other side that is not what it must be."""

    exit_code = 6


class SignatureError(ProtocolError):
    """Bytes that the expected key did not sign."""


class StorageError(EdgeError):
    """The device's own files are damaged or cannot be written."""

    exit_code = 7


class ReleaseError(EdgeError):
    """A release that may not be installed or did not pass its trial; the old model serves on."""

    exit_code = 8


class TrialInterruptedError(EdgeError):
    """Something else ended a release's trial: nothing is known of the model, it is tried again."""
