"""WAY IN 2: the process that runs rounds.

::

    start.py   the parent: waits for jobs, forks a work-horse for each, never touches a GPU
    job.py     what the work-horse runs: a round
    thumbnails.py   and after it: small pictures of what was chosen
    shards.py  or this: help with the pool of another worker's round
"""

__all__: list[str] = []
