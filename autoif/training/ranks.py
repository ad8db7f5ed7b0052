"""What the processes of a training tell each other."""

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def from_first(read: Callable[[], T]) -> T:
    """What `read()` gives on rank 0, on every rank: a shared disk shows the others its files late.

    Where no processes have met, this one is the first.
    """
    import torch.distributed as dist

    met = dist.is_available() and dist.is_initialized()
    told = [read() if not met or dist.get_rank() == 0 else None]
    if met:
        dist.broadcast_object_list(told)
    return told[0]
