"""Stand-ins on the CPU for CUDA in transports: streams that are always done, memory in shared files."""

from __future__ import annotations

import ctypes
import tempfile
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import ClassVar
from unittest.mock import patch

import torch
import torch.distributed as dist

from ringexp.ring.cuda_driver import SharedMemory

PATIENCE_S = 60


class _Stream:
    def wait_stream(self, other: object) -> None: ...

    def wait_event(self, event: object) -> None: ...


class _Event:
    timed: ClassVar[list[weakref.ref[_Event]]] = []  # that were recorded

    def __init__(self, enable_timing: bool = False, external: bool = False) -> None:
        self._timed = enable_timing

    def record(self) -> None:
        if self._timed:
            _Event.timed.append(weakref.ref(self))

    def synchronize(self) -> None: ...

    def elapsed_time(self, other: object) -> float:
        return 1.0


copied: list[int] = []
"""Bytes of what was copied to other ranks."""


class _Driver:
    """`ringexp.ring.cuda_driver` on host memory: every operation is done when it returns."""

    SharedMemory = SharedMemory

    def __init__(self, devices: int, kinds: int, nvlink: bool) -> None:
        self._devices, self._kinds, self._nvlink = devices, kinds, nvlink
        self._mapped: dict[int, torch.Tensor] = {}
        self.files: list[str] = []

    def export(self, tensor: torch.Tensor) -> SharedMemory:
        file = tempfile.NamedTemporaryFile(prefix="ringexp-test-", dir="/dev/shm", delete=False)  # noqa: SIM115
        file.truncate(tensor.nbytes)
        self.files.append(file.name)
        shared = self._map(file.name, tensor.nbytes).copy_(tensor)
        tensor.set_(shared)
        return SharedMemory(f"{file.name}:{tensor.nbytes}".encode(), 0)

    @staticmethod
    def _map(path: str, num_bytes: int) -> torch.Tensor:
        return torch.from_file(path, shared=True, size=num_bytes, dtype=torch.uint8)

    def open_shared(self, memory: SharedMemory) -> tuple[int, int]:
        path, _, num_bytes = memory.handle.decode().rpartition(":")
        tensor = self._map(path, int(num_bytes))
        self._mapped[tensor.data_ptr()] = tensor
        return tensor.data_ptr(), tensor.data_ptr()

    def close_shared(self, mapping: int) -> None:
        del self._mapped[mapping]

    @staticmethod
    def flags(stream: object, awaited: Sequence[int] = (), raised: Sequence[int] = ()) -> None:
        deadline = time.monotonic() + PATIENCE_S
        for flag in map(ctypes.c_uint32.from_address, awaited):
            while not flag.value:
                assert time.monotonic() < deadline, "a flag was never set"
                time.sleep(0)
            flag.value = 0
        for flag in map(ctypes.c_uint32.from_address, raised):
            flag.value = 1

    def device_id(self, device: torch.device) -> int:
        return dist.get_rank() % self._devices

    def over_nvlink(self, device: torch.device, other: int) -> bool:
        return self._nvlink

    def capability(self, device: torch.device) -> tuple[int, int]:
        return 9, dist.get_rank() % self._kinds

    @staticmethod
    def view(address: int, num_bytes: int, device: torch.device) -> torch.Tensor:
        return torch.frombuffer((ctypes.c_uint8 * num_bytes).from_address(address), dtype=torch.uint8)

    @staticmethod
    def copy_rows(stream: object, destination: int, pitch: int, source: torch.Tensor) -> None:
        copied.append(source.nbytes)
        for number, row in enumerate(source.flatten(0, 1)):
            contiguous = row.contiguous()
            ctypes.memmove(destination + number * pitch, contiguous.data_ptr(), contiguous.nbytes)

    @staticmethod
    def copy(stream: object, destination: int, source: int, num_bytes: int) -> None:
        ctypes.memmove(destination, source, num_bytes)


def dropped_events() -> int:
    """Count the recorded timed events that are gone. A CUDA graph would still point to them."""
    return sum(event() is None for event in _Event.timed)


def forget_events() -> None:
    """Look no longer after those recorded so far."""
    _Event.timed.clear()


@contextmanager
def cuda(devices: int = 1 << 30, kinds: int = 1, nvlink: bool = True) -> Iterator[None]:
    """Let NcclTransport and IpcTransport run on CPU tensors and the CPU group, on so many devices in turn, of
    so many kinds in turn, with NVLink between them or without."""
    stream, driver = _Stream(), _Driver(devices, kinds, nvlink)
    forget_events()
    with ExitStack() as stack:
        for target, stand_in in {
            "torch.cuda.Stream": lambda device, priority=0: stream,
            "torch.cuda.current_stream": lambda device: stream,
            "torch.cuda.stream": lambda stream: nullcontext(),
            "torch.cuda.synchronize": lambda device: None,
            "torch.cuda.Event": _Event,
            "torch.Tensor.record_stream": lambda tensor, stream: None,
            **{
                f"ringexp.ring.{part}.driver": driver
                for part in ("ipc", "ipc_memory", "ipc_pass", "ipc_signals")
            },
            "ringexp.ring.ipc_pieces.COPY_ROW_BYTES": 32,  # short shards come in pieces, too
            "ringexp.ring.ipc_pieces.COPY_BYTES": 1,
        }.items():
            stack.enter_context(patch(target, stand_in))
        yield
    for file in driver.files:
        Path(file).unlink()
