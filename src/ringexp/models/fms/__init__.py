"""Models of IBM Foundation Model Stack (FMS), run without a fork."""
