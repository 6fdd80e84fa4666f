"""WAY IN 2: the process that runs rounds.

::

    start.py   the parent: waits for jobs, forks a work-horse for each, never imports torch nor touches the GPU
    job.py     what the work-horse runs
"""

__all__: list[str] = []
