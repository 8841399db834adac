"""CUDA driver calls that PyTorch does not offer: memory shared between processes, and flags in streams.

A flag is a 32-bit word of device memory, of this process or of a peer, and is 0 or 1. Streams set flags and
wait for flags as they do other work: the host does not wait, no SM is used, and a CUDA graph can capture it.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from ringexp.errors import UserError

_HANDLE_BYTES = 64
_MOST_OPERATIONS = 128  # per batch; CUDA takes 256
_KEPT_PARAMETERS = 1024  # structures take longer to make than to use, and addresses repeat


@dataclass(frozen=True)
class SharedMemory:
    """The place of a tensor, in a form that another process on this machine can open.

    Attributes:
        handle: CUDA's handle of the allocation that contains the tensor.
        offset: bytes from the start of the allocation to the tensor.
    """

    handle: bytes
    offset: int


@functools.cache
def _driver() -> ModuleType:
    """Return cuda.bindings.driver. Raises UserError if its package is not installed."""
    try:
        return importlib.import_module("cuda.bindings.driver")
    except ImportError as error:
        raise UserError(
            "CUDA IPC needs the package cuda-bindings: pip install cuda-bindings, "
            "or use transport=nccl or gloo"
        ) from error


def _call(name: str, *arguments: object) -> list[Any]:
    """Call a function of the driver and return its results, or raise RuntimeError with CUDA's text."""
    status, *results = getattr(_driver(), name)(*arguments)
    if status:
        _, text = _driver().cuGetErrorString(status)
        raise RuntimeError(f"{name}: {text.decode() if text else f'CUDA error {int(status)}'}")
    return results


def _handle_bytes(handle: Any) -> ctypes.Array[ctypes.c_char]:
    """Return the bytes of a CUipcMemHandle, which has no member for them. They are valid as long as it is."""
    return (ctypes.c_char * _HANDLE_BYTES).from_address(handle.getPtr())


def export(tensor: torch.Tensor) -> SharedMemory:
    """Return the place of a tensor for a peer, which calls `open_shared`.

    The tensor must outlive the peer's use of it.

    Raises:
        UserError: if the tensor's memory cannot be shared.
    """
    try:
        base, _ = _call("cuMemGetAddressRange", tensor.data_ptr())
        [handle] = _call("cuIpcGetMemHandle", base)
    except RuntimeError as error:
        raise UserError(
            f"transport=ipc cannot share this process's GPU memory ({error}); unset "
            "PYTORCH_CUDA_ALLOC_CONF if it asks for expandable_segments, or use another transport"
        ) from error
    return SharedMemory(_handle_bytes(handle).raw, tensor.data_ptr() - int(base))


def open_shared(memory: SharedMemory) -> tuple[int, int]:
    """Map a peer's memory into this process.

    Returns:
        The mapping, for `close_shared`, and the address of the peer's tensor.

    Raises:
        UserError: if this process's GPU cannot reach the peer's.
    """
    driver = _driver()
    handle = driver.CUipcMemHandle()
    _handle_bytes(handle).raw = memory.handle
    try:
        [base] = _call("cuIpcOpenMemHandle", handle, driver.CUipcMem_flags.CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS)
    except RuntimeError as error:
        raise UserError(
            f"transport=ipc cannot reach a peer's GPU memory ({error}); all ranks have to be on one machine "
            "whose GPUs can access each other: use transport=nccl or gloo"
        ) from error
    return int(base), int(base) + memory.offset


class _Span:
    """Device memory, described by the CUDA array interface."""

    def __init__(self, address: int, num_bytes: int) -> None:
        shape, data = (num_bytes,), (address, False)
        self.__cuda_array_interface__ = {"shape": shape, "typestr": "|u1", "data": data, "version": 3}


def view(address: int, num_bytes: int, device: torch.device) -> torch.Tensor:
    """Return mapped memory of this GPU as a uint8 tensor [num_bytes]. It is valid as long as the mapping."""
    return torch.as_tensor(_Span(address, num_bytes), device=device)


def device_id(device: torch.device) -> str:
    """Return the UUID of a GPU, or of a MIG instance."""
    return str(torch.cuda.get_device_properties(device).uuid)


def over_nvlink(device: torch.device, other: str) -> bool:
    """Return whether a device reaches another GPU over NVLink.

    Args:
        device: a device of this process.
        other: the `device_id` of the other GPU.
    """
    ordinals = {device_id(torch.device("cuda", n)): n for n in range(torch.cuda.device_count())}
    ends = ordinals[device_id(device)], ordinals.get(other)
    with suppress(RuntimeError):
        if None not in ends:  # NVLink has native atomics; PCIe has none
            attributes = _driver().CUdevice_P2PAttribute
            native_atomics = attributes.CU_DEVICE_P2P_ATTRIBUTE_NATIVE_ATOMIC_SUPPORTED
            return bool(_call("cuDeviceGetP2PAttribute", native_atomics, *ends)[0])
    return False


def capability(device: torch.device) -> tuple[int, int]:
    """Return the compute capability of a GPU, which decides the kernels that it can run."""
    return torch.cuda.get_device_capability(device)


def close_shared(mapping: int) -> None:
    """Unmap a peer's memory that `open_shared` mapped."""
    _call("cuIpcCloseMemHandle", mapping)


def flags(stream: torch.cuda.Stream, awaited: Sequence[int] = (), raised: Sequence[int] = ()) -> None:
    """Let a stream wait for flags, and then raise others.

    Args:
        stream: the stream; later work in it waits too.
        awaited: addresses of flags. The stream waits until each is 1, and makes it 0.
        raised: addresses of flags that the stream makes 1, after all its earlier work.
    """
    for batch in _flag_batches(tuple(awaited), tuple(raised)):
        _call("cuStreamBatchMemOp", stream.cuda_stream, len(batch), batch, 0)


@functools.lru_cache(_KEPT_PARAMETERS)
def _flag_batches(awaited: tuple[int, ...], raised: tuple[int, ...]) -> list[list[Any]]:
    """Return the parameters of the operations that `flags` puts into a stream, in batches."""
    kinds, equal = _driver().CUstreamBatchMemOpType, _driver().CUstreamWaitValue_flags.CU_STREAM_WAIT_VALUE_EQ
    wait, write = kinds.CU_STREAM_MEM_OP_WAIT_VALUE_32, kinds.CU_STREAM_MEM_OP_WRITE_VALUE_32
    operations = []
    for address in awaited:
        operations += [_operation(wait, address, 1, equal), _operation(write, address, 0)]
    operations += [_operation(write, address, 1) for address in raised]
    return [operations[n : n + _MOST_OPERATIONS] for n in range(0, len(operations), _MOST_OPERATIONS)]


def _operation(kind: Any, address: int, value: int, flags: int = 0) -> Any:
    parameters = _driver().CUstreamBatchMemOpParams()
    parameters.operation = kind
    member = parameters.waitValue  # writeValue has the same layout and place
    member.address, member.value, member.flags = address, value, flags
    return parameters


def copy_rows(stream: torch.cuda.Stream, destination: int, pitch: int, source: torch.Tensor) -> None:
    """Copy a tensor to rows with gaps between them, also on another GPU.

    Args:
        stream: the stream that copies.
        destination: address of the first row; B x L rows follow each other.
        pitch: bytes from the start of one row to the start of the next.
        source: a tensor [B, L, ...], contiguous but for the strides of B and L.
    """
    row, length = source[0, 0], source.shape[1]
    assert row.is_contiguous(), source.stride()
    from_pitch = source.stride(1) * source.element_size()
    for number, sequence in enumerate(source):
        start = destination + number * length * pitch
        if from_pitch == pitch == row.nbytes or length == 1:
            copy(stream, start, sequence.data_ptr(), sequence.nbytes)
            continue
        rows = _rows(start, pitch, sequence.data_ptr(), from_pitch, row.nbytes, length)
        _call("cuMemcpy2DAsync", rows, stream.cuda_stream)


@functools.lru_cache(_KEPT_PARAMETERS)
def _rows(destination: int, pitch: int, source: int, source_pitch: int, width: int, height: int) -> Any:
    """Return the parameters of a copy of `height` rows of `width` bytes; pitches are in bytes, too."""
    rows = _driver().CUDA_MEMCPY2D()
    rows.srcMemoryType = rows.dstMemoryType = _driver().CUmemorytype.CU_MEMORYTYPE_UNIFIED  # any GPU
    rows.srcDevice, rows.srcPitch = source, source_pitch
    rows.dstDevice, rows.dstPitch = destination, pitch
    rows.WidthInBytes, rows.Height = width, height
    return rows


def copy(stream: torch.cuda.Stream, destination: int, source: int, num_bytes: int) -> None:
    """Copy device memory. From another GPU a copy engine copies, so no SM is used."""
    _call("cuMemcpyDtoDAsync", destination, source, num_bytes, stream.cuda_stream)
