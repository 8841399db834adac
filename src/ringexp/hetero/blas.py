"""Limit cuBLAS to SM counts at which its products are right, under MPS.

With most SM counts that MPS can grant, cuBLAS 13.0 on an H100 leaves tiles of a product unwritten. It was
right with 8-16, 30-34, 62-66 and 118-132 SMs, and wrong with all others for some shape, through both of its
interfaces. Limited to some smaller number of SMs it is right again. So a rank under MPS tests its cuBLAS, and
limits it if necessary. Attention kernels do not use cuBLAS and keep all SMs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from itertools import product

import torch

_ROWS = (64, 257, 512, 777, 1000, 1280, 1409, 1501, 2049, 2688, 4096)
_MORE_ROWS = tuple(range(100, 6000, 211))  # a second test, of a limit that passed the first
_COLUMNS = (1024, 4096, 12288)
_DEPTH = 4096


def mend_cublas(device: torch.device | str) -> int | None:
    """Limit this thread's cuBLAS to the largest number of SMs with which it is right.

    Args:
        device: the throttled device, with the throttle in effect.

    Returns:
        The number of SMs that cuBLAS may use, or None if it needs no limit.

    Raises:
        RuntimeError: if cuBLAS is wrong with every number of SMs.
    """
    with torch.cuda.device(device):
        sm_count = torch.cuda.get_device_properties(device).multi_processor_count

        def set_target(target: int | None) -> None:
            _set_target(target, sm_count)

        def is_right(target: int | None) -> bool:
            return _writes_everything(_ROWS) and (target is None or _writes_everything(_MORE_ROWS))

        return largest_right_target(sm_count, set_target, is_right)


def largest_right_target(
    sm_count: int, set_target: Callable[[int | None], None], is_right: Callable[[int | None], bool]
) -> int | None:
    """Set and return the largest limit that is right.

    Args:
        sm_count: SMs granted to this process. Limits tried are None (no limit), the even numbers below
            `sm_count` from the top, and 1.
        set_target: sets a limit.
        is_right: tests the limit that is set.

    Raises:
        RuntimeError: if no limit is right.
    """
    for target in (None, *range((sm_count - 1) // 2 * 2, 0, -2), 1):
        set_target(target)
        if is_right(target):
            return target
    raise RuntimeError(
        f"cuBLAS computes wrong products with {sm_count} SMs under MPS, and with every lower limit: use "
        "hetero.throttle=green_context, or another percentage (50 and 10 were right in tests)"
    )


def _writes_everything(all_rows: Sequence[int]) -> bool:
    """Return whether cuBLAS writes every element of products of many shapes."""
    x = torch.randn(max(all_rows), _DEPTH, device="cuda", dtype=torch.bfloat16)
    w = torch.randn(max(_COLUMNS), _DEPTH, device="cuda", dtype=torch.bfloat16)
    untouched = x.new_zeros((), dtype=torch.bool)
    for rows, columns in product(all_rows, _COLUMNS):
        out = x.new_full((rows, columns), float("nan"))
        torch.mm(x[:rows], w[:columns].T, out=out)
        untouched |= out.isnan().any()
    return not untouched.item()


def _set_target(target: int | None, sm_count: int) -> None:
    """Limit both of the cuBLAS interfaces that PyTorch uses. None removes the limit."""
    version = (torch.version.cuda or "0").partition(".")[0]
    library = ctypes.CDLL(f"libcublas.so.{version}")
    handle = ctypes.c_void_p(torch.cuda.current_blas_handle())
    if status := library.cublasSetSmCountTarget(handle, ctypes.c_int(target or 0)):
        raise RuntimeError(f"cublasSetSmCountTarget({target}) failed with status {status}")
    if set_carveout := getattr(torch._C, "_set_sm_carveout_experimental", None):  # cuBLASLt
        set_carveout(None if target is None else sm_count - target)
