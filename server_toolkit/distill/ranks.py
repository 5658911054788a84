"""Several processes that distil one proxy set together, as `torchrun` starts them."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from server_toolkit.errors import ConfigError

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Ranks:
    """One process among `world`; all of them make the same calls in the same order."""

    rank: int = 0
    world: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Return which of `count` pieces of work are this process's own, a block in order.

        Raises `ValueError` where they cannot be shared evenly.
        """
        if count % self.world:
            raise ValueError(f"{count} pieces of work for {self.world} processes; give a multiple")
        own = count // self.world
        return range(self.rank * own, (self.rank + 1) * own)

    def sharing(self, device: str) -> int:
        """Return how many of these processes take their memory from where this one does."""
        on_gpu = torch.device(device).type == "cuda"
        return 1 if on_gpu or self.world == 1 else int(os.environ.get("LOCAL_WORLD_SIZE", "1"))

    def gather(self, rows: Tensor) -> Tensor:
        """Return every process's rows `(n, ...)` one after another, `(world × n, ...)`.

        The order is that of `share`, so that a sum over the rows has one result, however many
        processes made them.
        """
        if self.world == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.world)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.world > 1:
            dist.barrier()


ALONE = Ranks()


@contextmanager
def joined_ranks(device: str) -> Iterator[tuple[Ranks, str]]:
    """Join the processes that `torchrun` started and give each its device; alone without it.

    Uses nccl on GPUs, one a process, and gloo on CPUs. Where the processes meet at a loopback
    address, their own connections stay on that interface too. Raises `ConfigError` where there are
    more processes than GPUs.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield ALONE, device
        return
    local = int(os.environ.get("LOCAL_RANK", "0"))
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        if local >= torch.cuda.device_count():
            raise ConfigError(
                f"{torch.cuda.device_count()} GPUs for at least {local + 1} processes; "
                "give torchrun a smaller --nproc-per-node"
            )
        device = f"cuda:{local}"
        torch.cuda.set_device(local)
    if os.environ.get("MASTER_ADDR", "127.0.0.1") in LOOPBACK:
        loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
        for library in ("GLOO", "NCCL"):
            os.environ.setdefault(f"{library}_SOCKET_IFNAME", loopback)
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size()), device
    finally:
        dist.destroy_process_group()
