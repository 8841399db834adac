"""CUDA driver calls that PyTorch does not offer: memory shared between processes, and flags in streams.

A flag is a 32-bit word of device memory, of this process or of a peer, and is 0 or 1. Streams set flags and
wait for flags as they do other work: the host does not wait, no SM is used, and a CUDA graph can capture it.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch

from ringexp.errors import UserError

_WAIT, _WRITE = 1, 2  # CU_STREAM_MEM_OP_WAIT_VALUE_32 and _WRITE_VALUE_32
_WAIT_EQUAL = 1  # CU_STREAM_WAIT_VALUE_EQ
_MOST_OPERATIONS = 128  # per batch; CUDA takes 256
_LAZY_PEER_ACCESS = 1  # CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS
_HANDLE_BYTES = 64
_ANY_DEVICE = 4  # CU_MEMORYTYPE_UNIFIED
_NATIVE_ATOMICS = 3  # CU_DEVICE_P2P_ATTRIBUTE_NATIVE_ATOMIC_SUPPORTED


@dataclass(frozen=True)
class SharedMemory:
    """The place of a tensor, in a form that another process on this machine can open.

    Attributes:
        handle: CUDA's handle of the allocation that contains the tensor.
        offset: bytes from the start of the allocation to the tensor.
    """

    handle: bytes
    offset: int


class _Handle(ctypes.Structure):
    _fields_ = (("reserved", ctypes.c_byte * _HANDLE_BYTES),)


class _Copy2D(ctypes.Structure):
    """CUDA_MEMCPY2D."""

    _fields_ = (
        ("source_x", ctypes.c_size_t),
        ("source_y", ctypes.c_size_t),
        ("source_type", ctypes.c_uint),
        ("source_host", ctypes.c_void_p),
        ("source", ctypes.c_uint64),
        ("source_array", ctypes.c_void_p),
        ("source_pitch", ctypes.c_size_t),
        ("destination_x", ctypes.c_size_t),
        ("destination_y", ctypes.c_size_t),
        ("destination_type", ctypes.c_uint),
        ("destination_host", ctypes.c_void_p),
        ("destination", ctypes.c_uint64),
        ("destination_array", ctypes.c_void_p),
        ("destination_pitch", ctypes.c_size_t),
        ("width", ctypes.c_size_t),
        ("height", ctypes.c_size_t),
    )


class _Operation(ctypes.Structure):
    """CUstreamBatchMemOpParams, whose members for waiting and for writing have the same layout."""

    _fields_ = (
        ("operation", ctypes.c_uint),
        ("address", ctypes.c_uint64),
        ("value", ctypes.c_uint64),
        ("flags", ctypes.c_uint),
        ("padding", ctypes.c_uint64 * 2),
    )


@functools.cache
def _driver() -> ctypes.CDLL:
    driver = ctypes.CDLL("libcuda.so.1")
    pointer, word = ctypes.c_uint64, ctypes.c_uint
    driver.cuStreamBatchMemOp_v2.argtypes = (ctypes.c_void_p, word, ctypes.c_void_p, word)
    driver.cuMemcpyDtoDAsync_v2.argtypes = (pointer, pointer, ctypes.c_size_t, ctypes.c_void_p)
    driver.cuMemcpy2DAsync_v2.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
    driver.cuMemGetAddressRange_v2.argtypes = (ctypes.c_void_p, ctypes.c_void_p, pointer)
    driver.cuIpcGetMemHandle.argtypes = (ctypes.c_void_p, pointer)
    driver.cuIpcOpenMemHandle_v2.argtypes = (ctypes.c_void_p, _Handle, word)
    driver.cuIpcCloseMemHandle.argtypes = (pointer,)
    driver.cuDeviceGetP2PAttribute.argtypes = (ctypes.c_void_p, word, ctypes.c_int, ctypes.c_int)
    return driver


def _call(name: str, *arguments: object) -> None:
    """Call a function of the driver. Raises RuntimeError with CUDA's text if it fails."""
    status = getattr(_driver(), name)(*arguments)
    if status:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(status, ctypes.byref(text))
        raise RuntimeError(f"{name}: {text.value.decode() if text.value else f'CUDA error {status}'}")


def export(tensor: torch.Tensor) -> SharedMemory:
    """Return the place of a tensor for a peer, which calls `open_shared`.

    The tensor must outlive the peer's use of it.

    Raises:
        UserError: if the tensor's memory cannot be shared.
    """
    base, size, handle = ctypes.c_uint64(), ctypes.c_size_t(), _Handle()
    try:
        _call("cuMemGetAddressRange_v2", ctypes.byref(base), ctypes.byref(size), tensor.data_ptr())
        _call("cuIpcGetMemHandle", ctypes.byref(handle), base.value)
    except RuntimeError as error:
        raise UserError(
            f"transport=ipc cannot share this process's GPU memory ({error}); unset "
            "PYTORCH_CUDA_ALLOC_CONF if it asks for expandable_segments, or use another transport"
        ) from error
    return SharedMemory(bytes(handle), tensor.data_ptr() - base.value)


def open_shared(memory: SharedMemory) -> tuple[int, int]:
    """Map a peer's memory into this process.

    Returns:
        The mapping, for `close_shared`, and the address of the peer's tensor.

    Raises:
        UserError: if this process's GPU cannot reach the peer's.
    """
    base = ctypes.c_uint64()
    try:
        handle = _Handle.from_buffer_copy(memory.handle)
        _call("cuIpcOpenMemHandle_v2", ctypes.byref(base), handle, _LAZY_PEER_ACCESS)
    except RuntimeError as error:
        raise UserError(
            f"transport=ipc cannot reach a peer's GPU memory ({error}); all ranks have to be on one machine "
            "whose GPUs can access each other: use transport=nccl or gloo"
        ) from error
    return base.value, base.value + memory.offset


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
    ends, atomics = (ordinals[device_id(device)], ordinals.get(other)), ctypes.c_int()
    with suppress(RuntimeError):
        if None not in ends:  # NVLink has native atomics; PCIe has none
            _call("cuDeviceGetP2PAttribute", ctypes.byref(atomics), _NATIVE_ATOMICS, *ends)
    return bool(atomics.value)


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
    operations = []
    for address in awaited:
        operations += [(_WAIT, address, 1, _WAIT_EQUAL), (_WRITE, address, 0, 0)]
    operations += [(_WRITE, address, 1, 0) for address in raised]
    for start in range(0, len(operations), _MOST_OPERATIONS):
        batch = [_Operation(*operation) for operation in operations[start : start + _MOST_OPERATIONS]]
        array = (_Operation * len(batch))(*batch)
        _call("cuStreamBatchMemOp_v2", stream.cuda_stream, len(batch), array, 0)


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
        rows = _Copy2D(
            source_type=_ANY_DEVICE,
            source=sequence.data_ptr(),
            source_pitch=from_pitch,
            destination_type=_ANY_DEVICE,
            destination=start,
            destination_pitch=pitch,
            width=row.nbytes,
            height=length,
        )
        _call("cuMemcpy2DAsync_v2", ctypes.byref(rows), stream.cuda_stream)


def copy(stream: torch.cuda.Stream, destination: int, source: int, num_bytes: int) -> None:
    """Copy device memory. From another GPU a copy engine copies, so no SM is used."""
    _call("cuMemcpyDtoDAsync_v2", destination, source, num_bytes, stream.cuda_stream)
