"""Processes only: start the ranks of a set, supervise them, and follow their progress.

`local` starts ranks on this machine, one process per rank. `supervision` is what every launcher needs. The
work of a rank is in `ringexp.worker`, and SLURM is in `ringexp.slurm`.
"""
