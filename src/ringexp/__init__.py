"""Exact ring-attention prefill on unequal GPUs: measure, plan, run, prove."""

__version__ = "0.1.0"
