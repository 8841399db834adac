"""Block attention kernels behind one signature: (q, k, v, causal, scale) -> (out, lse)."""
