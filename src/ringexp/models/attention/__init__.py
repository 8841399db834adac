"""One attention layer, or the ring alone, as a workload."""
