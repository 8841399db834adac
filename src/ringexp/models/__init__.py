"""FMS models and the single-layer attention workload, all through one attention op."""
