"""Active learning for Label Studio, for radiology: the map of the package.

One way through::

    Label Studio ─webhook─> server ─> scheduling.queue (rq) ─Redis─> scheduling.worker ─┐
                                                                                        ├─> rounds.run.run_round
                     simulation (an oracle instead of Label Studio) ────────────────────┘
    annotations -> consensus -> split -> model (train, T dropout passes) -> acquisition (rank)
                -> storage (save) -> label_studio.publisher (publish)
    Label Studio ─/predict─> server ─> storage      no torch, no GPU in a request

Rooms, imports going down only (``.importlinter`` fails the build otherwise)::

    __main__       python -m ml_backend
    _wsgi          the program that `label-studio-ml start ml_backend` runs
    cli            the `ml-backend` command: parse, call, exit status
    adapter        label-studio-ml's own model class over the same server code
    demo           `make demo`: services, simulated readers, live view, table
    doctor         `ml-backend doctor`: checks every connection between Label Studio and the worker
    server         HTTP endpoints for Label Studio and the owner's pages; torch-free
    simulation     `ml-backend simulate`, `compare`, `experiment`: the same rounds, with an oracle as reader
    imports        `ml-backend import`: files of a hospital -> tasks of a project, de-identified
    worker         shims: the dotted paths of jobs as Redis holds them
    scheduling     when a round is due (policy), the queue on Redis and rq, the worker, the reconciler
    rounds         one round: run (the story), live, reuse, cold_start, split, holdout, spread, reread, replay
    analytics      what stored rounds and labels show to the owner; torch-free
    model          labels -> network -> pool predictions
    acquisition    pool predictions -> ranking
    consensus      annotations -> labels: rules, and models of the readers
    processes      child processes that are started, waited for and stopped
    images         image reference -> array: sources, decoding, cache, transforms, synthetic images
    label_studio   Label Studio's API and JSON; torch-free
    storage        the data folder: rounds, outputs, quarantine; atomic writes
    logs           structured logs of server and worker, with project and round, without secrets
    config         Settings (environment), ProjectOptions (per project), certificates and proxies
    predictions    arrays that a learner hands to an acquisition function
    charts         the only place that draws
    registry       acquisition functions by name and description
    extras         what the package's extras bring, and what to install where it is missing
    schemas        records that travel between the rooms: frozen, validated, JSON
    seeding        hash-based draws and derived seeds
    blas           deterministic matrix products, and threads, set where a process starts
    errors         the tree of errors
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ml_backend.simulation.frames import simulate as simulate

__all__: list[str] = []


def __getattr__(name: str) -> Any:
    """``simulate``, imported when it is first used: it loads PyTorch and pandas."""
    if name != "simulate":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ml_backend.extras import require  # noqa: PLC0415

    require("simulate", "`ml_backend.simulate`")
    from ml_backend.simulation.frames import simulate  # noqa: PLC0415

    return simulate
