"""The device: local training, the wire protocol and the long-running agent."""

from importlib.metadata import version

__version__ = version("trajsyn")
