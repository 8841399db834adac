"""The few CUDA driver calls that PyTorch does not offer: memory shared with other processes, stream flags.

A flag is a 32-bit word of device memory, this process's own or a peer's, 0 or 1. Setting some and waiting for
some are operations of a stream like any other: the host does not wait, no SM is taken, and a CUDA graph
captures them.
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
_MOST_OPERATIONS = 128  # in a batch; CUDA takes 256
_LAZY_PEER_ACCESS = 1  # CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS
_HANDLE_BYTES = 64
_ANY_DEVICE = 4  # CU_MEMORYTYPE_UNIFIED
_NATIVE_ATOMICS = 3  # CU_DEVICE_P2P_ATTRIBUTE_NATIVE_ATOMIC_SUPPORTED


@dataclass(frozen=True)
class SharedMemory:
    """Where a tensor lies, in words that another process on this machine understands."""

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
    """CUstreamBatchMemOpParams: its members for waiting and for writing are alike."""

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
    status = getattr(_driver(), name)(*arguments)
    if status:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(status, ctypes.byref(text))
        raise RuntimeError(f"{name}: {text.value.decode() if text.value else f'CUDA error {status}'}")


def export(tensor: torch.Tensor) -> SharedMemory:
    """The tensor's memory for a peer to `open_shared`; the tensor must outlive the peer's use of it.

    Raises UserError if the allocator gave memory that cannot be shared.
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
    """Map a peer's memory; returns the mapping, for `close_shared`, and the address of the peer's tensor.

    Raises UserError where this process's GPU cannot reach the peer's.
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
    """Device memory as numpy's protocol describes it."""

    def __init__(self, address: int, num_bytes: int) -> None:
        shape, data = (num_bytes,), (address, False)
        self.__cuda_array_interface__ = {"shape": shape, "typestr": "|u1", "data": data, "version": 3}


def view(address: int, num_bytes: int, device: torch.device) -> torch.Tensor:
    """Mapped memory of this GPU as a tensor [num_bytes] uint8, valid as long as the mapping is."""
    return torch.as_tensor(_Span(address, num_bytes), device=device)


def device_id(device: torch.device) -> str:
    """What tells a GPU, or a MIG instance, from all others."""
    return str(torch.cuda.get_device_properties(device).uuid)


def over_nvlink(device: torch.device, other: str) -> bool:
    """Whether the GPU of that `device_id` is reached over NVLink; native atomics, which PCIe lacks, tell."""
    ordinals = {device_id(torch.device("cuda", n)): n for n in range(torch.cuda.device_count())}
    ends, found = (ordinals[device_id(device)], ordinals.get(other)), ctypes.c_int()
    with suppress(RuntimeError):
        if None not in ends:
            _call("cuDeviceGetP2PAttribute", ctypes.byref(found), _NATIVE_ATOMICS, *ends)
    return bool(found.value)


def capability(device: torch.device) -> tuple[int, int]:
    """Which kernels a GPU runs."""
    return torch.cuda.get_device_capability(device)


def close_shared(mapping: int) -> None:
    """Undo `open_shared`."""
    _call("cuIpcCloseMemHandle", mapping)


def flags(stream: torch.cuda.Stream, taken: Sequence[int] = (), given: Sequence[int] = ()) -> None:
    """Hold later work of the stream until each flag of `taken` is 1, and make it 0; then make `given` 1.

    Given ones are seen after all earlier work of the stream.
    """
    operations = []
    for address in taken:
        operations += [(_WAIT, address, 1, _WAIT_EQUAL), (_WRITE, address, 0, 0)]
    operations += [(_WRITE, address, 1, 0) for address in given]
    for start in range(0, len(operations), _MOST_OPERATIONS):
        batch = [_Operation(*operation) for operation in operations[start : start + _MOST_OPERATIONS]]
        array = (_Operation * len(batch))(*batch)
        _call("cuStreamBatchMemOp_v2", stream.cuda_stream, len(batch), array, 0)


def copy_rows(stream: torch.cuda.Stream, destination: int, pitch: int, source: torch.Tensor) -> None:
    """Copy a tensor [B, L, ...] to rows, [B, L], that begin `pitch` bytes apart, also on another GPU.

    Of its strides only those of B and L may be other than a contiguous tensor's.
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
    """Copy device memory, also from another GPU, where a copy engine does it."""
    _call("cuMemcpyDtoDAsync_v2", destination, source, num_bytes, stream.cuda_stream)
