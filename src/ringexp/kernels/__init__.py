"""Block attention kernels behind one signature: (q, k, v, shape, softmax_scale) -> (out, lse).

`get_kernel` picks one by name; `OnlineSoftmax` merges the results of several blocks. `contract` documents the
signature, and that of kernels that merge by themselves and compute several blocks per call. `oracle` defines
the exact result. `decode` has the kernels for one token over a cache. Importing this does not import triton.
"""

from ringexp.kernels.contract import (
    Accumulator,
    ArrivalFlags,
    BlockFunction,
    Destination,
    FusedLimits,
    Kernel,
    KeySpan,
    Provider,
    Remote,
    Sending,
)
from ringexp.kernels.decode import DecodeKernel, Slots, get_decode_kernel
from ringexp.kernels.merge import OnlineSoftmax
from ringexp.kernels.providers import candidates, get_kernel

__all__ = [
    "Accumulator",
    "ArrivalFlags",
    "BlockFunction",
    "DecodeKernel",
    "Destination",
    "FusedLimits",
    "Kernel",
    "KeySpan",
    "OnlineSoftmax",
    "Provider",
    "Remote",
    "Sending",
    "Slots",
    "candidates",
    "get_decode_kernel",
    "get_kernel",
]
