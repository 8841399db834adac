"""The ring: pass-KV prefill over any number of ranks, and the transports that carry it.

`prefill.ring_attention` is the algorithm. `transport` moves shards, `clock` tells busy time from waiting.
"""
