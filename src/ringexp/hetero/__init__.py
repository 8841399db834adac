"""Hetero profiles, and the throttles that slow a rank to its percentage.

`profiles` has the percentages, `drift` changes them in mid-run, `throttle` chooses and applies a throttle.
Each throttle has a file: `mps`, `green_context`, `cpu_pacing`, `cpu_quota`, `unthrottled`. Importing them
does not import torch.
"""
