"""Settings and a connection in, the parts of a live round out: the only place that names concrete classes.

Imports torch, so only a worker imports this module, and where there may be a GPU only its work-horse.

::

    rounds.py     a round, and what scores shards of another worker's
    reranking.py  another strategy at once
    sealing.py    a round is kept with what it saw, and its manifest
    proving.py    what was chosen against what came by chance: which labels, which networks
    comparing.py  the comparison itself
    live.py       what every way of publishing a live project has in common
    world.py      a project as a worker meets it
"""

from ml_backend.assembly.rounds import run_live_round, shard_scorer

__all__ = ["run_live_round", "shard_scorer"]
