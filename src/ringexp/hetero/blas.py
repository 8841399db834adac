"""Keeping cuBLAS right where MPS grants part of the SMs.

cuBLAS 13.0 on an H100 leaves tiles of a product unwritten for most SM counts that MPS can grant: 8-16, 30-34,
62-66 and 118-132 SMs were right, all others wrong for some shape, by both of its interfaces. Telling it to
use fewer SMs mends it, for some numbers. So a rank under MPS tests its cuBLAS and limits it if it has to.
Attention kernels are not cuBLAS's and keep all SMs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from itertools import product

import torch

_ROWS = (64, 257, 512, 777, 1000, 1280, 1409, 1501, 2049, 2688, 4096)
_MORE_ROWS = tuple(range(100, 6000, 211))  # for a limit that was right so far
_COLUMNS = (1024, 4096, 12288)
_DEPTH = 4096


def mend_cublas(device: torch.device | str) -> int | None:
    """Limit this thread's cuBLAS on a device as far as it takes to be right; call it under the throttle.

    Returns the SMs that it may use, or None where it is right as it is. Raises RuntimeError if nothing helps.
    """
    with torch.cuda.device(device):
        sm_count = torch.cuda.get_device_properties(device).multi_processor_count

        def set_target(target: int | None) -> None:
            _set_target(target, sm_count)

        def is_right(target: int | None) -> bool:
            return _leaves_nothing_out(_ROWS) and (target is None or _leaves_nothing_out(_MORE_ROWS))

        return largest_right_target(sm_count, set_target, is_right)


def largest_right_target(
    sm_count: int, set_target: Callable[[int | None], None], is_right: Callable[[int | None], bool]
) -> int | None:
    """The first of None (no limit), the even numbers below `sm_count` from the top, and 1 that `is_right`.

    The one returned is set. Raises RuntimeError if none is right.
    """
    for target in (None, *range((sm_count - 1) // 2 * 2, 0, -2), 1):
        set_target(target)
        if is_right(target):
            return target
    raise RuntimeError(
        f"cuBLAS computes wrong products with {sm_count} SMs under MPS, whatever it is limited to: use "
        "hetero.throttle=green_context, or another percentage (50 and 10 have been seen right)"
    )


def _leaves_nothing_out(all_rows: Sequence[int]) -> bool:
    """Whether products of many shapes are written to the last element."""
    x = torch.randn(max(all_rows), _DEPTH, device="cuda", dtype=torch.bfloat16)
    w = torch.randn(max(_COLUMNS), _DEPTH, device="cuda", dtype=torch.bfloat16)
    untouched = x.new_zeros((), dtype=torch.bool)
    for rows, columns in product(all_rows, _COLUMNS):
        out = x.new_full((rows, columns), float("nan"))
        torch.mm(x[:rows], w[:columns].T, out=out)
        untouched |= out.isnan().any()
    return not untouched.item()


def _set_target(target: int | None, sm_count: int) -> None:
    """Limit both of the interfaces that PyTorch uses; None lifts the limit."""
    version = (torch.version.cuda or "0").partition(".")[0]
    library = ctypes.CDLL(f"libcublas.so.{version}")
    handle = ctypes.c_void_p(torch.cuda.current_blas_handle())
    if status := library.cublasSetSmCountTarget(handle, ctypes.c_int(target or 0)):
        raise RuntimeError(f"cublasSetSmCountTarget({target}) failed with status {status}")
    if set_carveout := getattr(torch._C, "_set_sm_carveout_experimental", None):  # cuBLASLt
        set_carveout(None if target is None else sm_count - target)
