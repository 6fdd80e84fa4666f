"""`ml-backend bench`: figures, side by side with the peers.

::

    run.py          the story: start both sides, go through the cases, write table and JSON
    cases/          what is compared, and the floor that it must reach; one file a subject
    pools.py        the pools that both sides get: softmax outputs with near-duplicates
    films.py        the films that both sides decode
    judge.py        how much a batch tells about the network: one estimator for everybody's batches
    report.py       figures as records, as JSON and as a table
    machine.py      what the figures were measured on
    environment.py  the peers' environment: built once, never the project's
    process.py      a side of the comparison: a process of its own, on one thread
    worker.py       the program of such a process; knows nothing of this package
    tasks_ours.py   what it can do on our side
    tasks_peers.py  what it can do on the peers' side
"""
