"""Block attention kernels behind one signature: (q, k, v, causal, softmax_scale) -> (out, lse).

`contract` states it, `oracle` is the specification in float64, `aten` calls PyTorch's kernels, `triton_block`
ours; `providers` chooses. `merge` joins the results of several blocks.
"""

from ringexp.kernels.merge import OnlineSoftmax
from ringexp.kernels.providers import KERNEL_NAMES, Kernel, get_kernel

__all__ = ["KERNEL_NAMES", "Kernel", "OnlineSoftmax", "get_kernel"]
