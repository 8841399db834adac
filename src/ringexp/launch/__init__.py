"""Starting ranks, supervising them, and what a rank does with its list of jobs.

`local` runs in the launcher: one process a rank, an environment each. `rank` is the process's main, `session`
what it keeps between jobs, `job` one run from speeds to results. `progress` is how ranks report meanwhile.
"""
