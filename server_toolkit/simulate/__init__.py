"""A federation in one process: the devices' training and the server's rounds, without a wire."""

from server_toolkit.simulate.federation import ClientUpdate, Federation, RoundResult
from server_toolkit.simulate.settings import FederationSettings

__all__ = ["ClientUpdate", "Federation", "FederationSettings", "RoundResult"]
