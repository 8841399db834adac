"""Everything about SLURM and submitit.

`submit` submits the runs of a sweep and follows the jobs; `settings` is what the user asks of the cluster.
Inside a job, `step` starts ranks in place of `launch.local`, `task` watches over one rank, and `survey` lists
what a node has. `job` is what a job is given.
"""
