"""Hetero profiles and the throttles that make a rank slower than it is.

`profiles` names them, `throttle` chooses and applies one; `mps`, `green_context`, `pacing` and `cgroup` are
the mechanisms. Importing any of them does not import torch.
"""
