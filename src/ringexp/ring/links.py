"""Connections between the ranks of a group on the host."""

from __future__ import annotations

from datetime import timedelta
from typing import Protocol

import torch
import torch.distributed as dist


class Links(Protocol):
    """The methods of a ProcessGroupGloo that rings use; PyTorch's stub of it lacks them."""

    def rank(self) -> int: ...

    def send(self, tensors: list[torch.Tensor], peer: int, tag: int, /) -> LinkWork: ...

    def recv(self, tensors: list[torch.Tensor], peer: int, tag: int, /) -> LinkWork: ...

    def broadcast(self, tensors: list[torch.Tensor], options: dist.BroadcastOptions, /) -> dist.Work: ...

    def allreduce(self, tensors: list[torch.Tensor], options: dist.AllreduceOptions, /) -> dist.Work: ...

    def barrier(self) -> LinkWork: ...


class LinkWork(Protocol):
    """A transfer that was begun."""

    def wait(self, timeout: timedelta = ..., /) -> bool: ...
