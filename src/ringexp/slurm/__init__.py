"""Sweeps on a cluster, through submitit: `submit` here, `job` in the job that SLURM starts.

A job runs what can share ranks, as a local sweep does, with `launch.slurm_step` in place of `launch.local`.
"""
