"""The ring: pass-KV prefill over any number of ranks, and the transports that carry it.

`prefill.ring_attention` is the algorithm. `transport` says what moves shards; `nccl`, `ipc` and `gloo` do it.
`clock` tells busy time from waiting, `iteration` runs the whole again and again, as a CUDA graph if wanted.
"""
