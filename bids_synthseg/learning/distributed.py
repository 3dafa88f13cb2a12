"""Several processes that train one network, as `torchrun` starts them.

Every process sees other samples of the same step; gradients are averaged by torch's
DistributedDataParallel, so that all keep equal weights. A lone process is a team of one.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed, nn


@dataclass(frozen=True)
class Team:
    """This process's number `rank` among `size`, and the device it works on."""

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes files and lines."""
        return self.rank == 0

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network with its gradients averaged over the team."""
        if self.size == 1:
            return network
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(network, device_ids=ids)

    def agree(self, *wishes: bool) -> list[bool]:
        """For each wish whether any process has it. All wait here for the last of them.

        The processors talk among themselves: no GPU waits.
        """
        if self.size == 1:
            return list(wishes)
        found = torch.tensor(wishes, dtype=torch.uint8)
        distributed.all_reduce(found, distributed.ReduceOp.MAX)
        return [bool(one) for one in found]

    def gather(self, values: list) -> list:
        """The lists of all processes behind one another, in order of rank."""
        if self.size == 1:
            return values
        found: list = [None] * self.size
        distributed.all_gather_object(found, values)
        return [value for part in found for value in part]


@contextmanager
def team(device: torch.device) -> Iterator[Team]:
    """The team that `torchrun`'s environment tells of, or a lone process on `device`.

    On GPUs every process takes the one of its local rank.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Team(0, 1, device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield Team(distributed.get_rank(), size, device)
    finally:
        distributed.destroy_process_group()
