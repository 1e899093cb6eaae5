"""The processes that train together, one by default."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

if torch.distributed.is_available():
    # DistributedDataParallel imports it, and its default arguments keep the group of that moment:
    # imported before there is one, the group ends, and with it threads that abort the interpreter
    # when they outlive it
    import torch.distributed.nn.functional  # noqa: F401


class Processes:
    """This process and its peers, which torchrun has started; a context that connects them.

    Args:
        device: "cpu", "cuda" or "cuda:1"; None for a GPU if torch sees one. Of several processes
            with GPUs, each takes the one of its local rank.
        patience: how long one process may wait for another; None for torch's own limit.

    Raises:
        ValueError: there is no such device.
    """

    def __init__(
        self, device: str | None = None, patience: datetime.timedelta | None = None
    ) -> None:
        self.rank = int(os.environ.get("RANK", 0))
        self.count = int(os.environ.get("WORLD_SIZE", 1))
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if self.count > 1 and device == "cuda":
            device = f"cuda:{os.environ['LOCAL_RANK']}"
        self.device = _device(device)
        self._patience = patience
        self._owner = False

    @property
    def is_first(self) -> bool:
        """Whether this one writes files and reports."""
        return self.rank == 0

    def __enter__(self) -> Processes:
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        self._owner = self.count > 1 and not torch.distributed.is_initialized()
        if self._owner:
            backend = "nccl" if self.device.type == "cuda" else "gloo"
            torch.distributed.init_process_group(backend, timeout=self._patience)
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if self.count > 1 and error is None:
            torch.distributed.barrier()  # what the first one wrote is there for all
        if self._owner:
            torch.distributed.destroy_process_group()

    def wrapped(self, model: nn.Module, sync_batch_norm: bool) -> nn.Module:
        """``model``, with gradients that are means over the processes.

        Args:
            sync_batch_norm: whether statistics of normalization are over the processes, too.
                Changes the layers of ``model`` in place.
        """
        if self.count == 1 or not any(p.requires_grad for p in model.parameters()):
            return model
        devices = [self.device] if self.device.type == "cuda" else None
        wrapped = nn.parallel.DistributedDataParallel(model, device_ids=devices)
        if sync_batch_norm:  # afterwards, since on the CPU it refuses layers that the ops can run
            nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return wrapped

    def sums(self, *values: float | Tensor) -> list[float]:
        """Each of the numbers, added up over the processes."""
        if self.count == 1:
            return [float(value) for value in values]
        numbers = torch.stack(
            [torch.as_tensor(value, dtype=torch.float64, device=self.device) for value in values]
        )
        torch.distributed.all_reduce(numbers)
        return numbers.tolist()

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Gives all processes the first one's values, in place."""
        if self.count > 1:
            for tensor in tensors:
                torch.distributed.broadcast(tensor, 0)

    def gathered(self, value: Any) -> list[Any]:
        """The value of each process, in the order of their ranks."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(values, value)
        return values


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device must be such as cpu, cuda or cuda:1, got {name!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {name!r}, but torch sees no GPU")
    return device
