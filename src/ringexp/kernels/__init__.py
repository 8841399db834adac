"""Block attention kernels behind one signature: (q, k, v, shape, softmax_scale) -> (out, lse).

`get_kernel` picks one by name; `OnlineSoftmax` merges the results of several blocks. The signature is
spelled out in `contract`, with that of kernels that merge, and take several blocks at once; its exact meaning
is in `oracle`. One token over a cache has kernels of its own, in `decode`. Importing this does not import
triton.
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
