"""Test whether an MPS daemon accepts clients. After a client was killed it may answer, but refuse new ones.

As a script it makes a context on the first visible device, as every client does, and prints the code and name
of the driver's result. `refusal` runs it in a child process. Stdlib only.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

_REFUSALS = {46, *range(805, 812)}  # CUDA_ERROR_DEVICE_UNAVAILABLE, CUDA_ERROR_MPS_*
PROBE_S = 60.0


def refusal(variables: dict[str, str]) -> str | None:
    """Return the driver's reason for refusing a new client of a daemon.

    Args:
        variables: the daemon's environment variables for clients.

    Returns:
        The reason; None if the client is accepted, or if this cannot be found out, as without a driver.
    """
    command = [sys.executable, "-I", "-S", __file__]
    try:
        probe = subprocess.run(
            command,
            env=os.environ | variables,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=PROBE_S,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {PROBE_S:g} s"
    code, _, name = probe.stdout.strip().partition(" ")
    return name if probe.returncode == 0 and int(code) in _REFUSALS else None


def _context_error() -> tuple[int, str]:
    driver = ctypes.CDLL("libcuda.so.1")
    device, context, name = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_char_p()
    code = (
        driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(device), 0)
        or driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
    )
    driver.cuGetErrorName(code, ctypes.byref(name))
    return code, (name.value or b"unknown").decode()


if __name__ == "__main__":
    print(*_context_error())
