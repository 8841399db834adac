"""Count the streaming multiprocessors (SMs) of a device, and check the number that a rank was granted.

Stdlib only. As a script it prints the SM count of every visible device, from the driver and without a CUDA
context. `probe_sm_totals` runs it in a child process, where neither MPS nor this process's CUDA state changes
the answer.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

SM_TOTAL_ENV = "RINGEXP_SM_TOTAL"
"""The environment variable with the SMs of every device, for ranks that see fewer.

The launcher sets it if all devices have the same number.
"""

_MULTIPROCESSOR_COUNT = 16  # CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
_RESOURCE_TYPE_SM = 1  # CU_DEV_RESOURCE_TYPE_SM
_RESOURCE_BYTES = 256  # more than any driver's CUdevResource
_RESOURCE_SM_COUNT_OFFSET = 96  # of CUdevResource.sm.smCount


def probe_sm_totals() -> list[int]:
    """Return the SMs of each visible device without a throttle, in device order; [] without a driver."""
    env = {**os.environ, "CUDA_MPS_PIPE_DIRECTORY": "/nonexistent"}
    env.pop("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", None)
    command = [sys.executable, "-I", "-S", __file__]
    try:
        probe = subprocess.run(
            command, env=env, capture_output=True, encoding="utf-8", errors="replace", timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [int(count) for count in probe.stdout.split()] if probe.returncode == 0 else []


def sm_total(device_index: int) -> int | None:
    """Return the SMs of a device without a throttle: the launcher's figure, else the driver's, else None."""
    if launchers_figure := os.environ.get(SM_TOTAL_ENV):
        return int(launchers_figure)
    totals = probe_sm_totals()
    return totals[device_index] if device_index < len(totals) else None


def stream_sm_count(cuda_stream: int) -> int | None:
    """Return the SMs that work in a stream of a green context may use; None if the driver does not tell.

    Args:
        cuda_stream: the CUstream handle, as in `torch.cuda.Stream.cuda_stream`.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        green_context = ctypes.c_void_p()
        if driver.cuStreamGetGreenCtx(ctypes.c_void_p(cuda_stream), ctypes.byref(green_context)):
            return None
        if not green_context.value:
            return None
        resource = ctypes.create_string_buffer(_RESOURCE_BYTES)
        if driver.cuGreenCtxGetDevResource(green_context, resource, _RESOURCE_TYPE_SM):
            return None
    except (OSError, AttributeError):
        return None
    return ctypes.c_uint.from_buffer(resource, _RESOURCE_SM_COUNT_OFFSET).value or None


def check_grant(throttle: str, percentage: float, sm_count: int, sm_total: int | None, granule: int) -> None:
    """Raise RuntimeError if a rank was granted another part of the device than it requested.

    Args:
        throttle: the throttle's name, for the message.
        percentage: the part that the rank asked for.
        sm_count: SMs that the process may use.
        sm_total: SMs of the device; None: unknown, and nothing is checked.
        granule: SMs are granted in multiples of this; a difference of two granules is accepted.
    """
    if sm_total is None:
        return
    expected = percentage * sm_total / 100
    if abs(sm_count - expected) > 2 * granule:
        raise RuntimeError(
            f"hetero.throttle={throttle} did not take effect: asked for {percentage:g} % of {sm_total} SMs, "
            f"that is {expected:.0f}, but this process may use {sm_count}"
        )


def _driver_sm_counts() -> list[int]:
    driver = ctypes.CDLL("libcuda.so.1")
    value, device = ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(value)):
        raise OSError("the CUDA driver found no device")
    counts = []
    for index in range(value.value):
        failed = driver.cuDeviceGet(ctypes.byref(device), index)
        if failed or driver.cuDeviceGetAttribute(ctypes.byref(value), _MULTIPROCESSOR_COUNT, device):
            raise OSError(f"the CUDA driver does not describe device {index}")
        counts.append(value.value)
    return counts


if __name__ == "__main__":
    print(*_driver_sm_counts())
