"""The ring: attention and decoding over any number of ranks, and the transports that carry it.

`attention.ring_attention` is the entry and `loop` the algorithm; `fused` does the same with kernels that take
several blocks at once. `transport` says what a transport does; `nccl`, `ipc` and `gloo` do it. `clock` splits
time into compute and waiting, `iteration` repeats work, as a CUDA graph if wanted.
"""
