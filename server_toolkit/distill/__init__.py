"""Trajectory matching: from the weights that the server received to a synthetic proxy set."""

from server_toolkit.distill.config import DistillConfig
from server_toolkit.distill.engine import DistillProgress, distill
from server_toolkit.distill.initial_images import ServerSet, initial_images
from server_toolkit.distill.proxy_set import ProxySet
from server_toolkit.distill.segments import Segment, Trajectories, list_segments

__all__ = [
    "DistillConfig",
    "DistillProgress",
    "ProxySet",
    "Segment",
    "ServerSet",
    "Trajectories",
    "distill",
    "initial_images",
    "list_segments",
]
