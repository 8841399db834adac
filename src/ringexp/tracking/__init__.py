"""Metrics, result files and wandb."""
