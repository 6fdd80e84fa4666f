"""Active learning for Label Studio, for radiology: the map of the package.

One way through::

    Label Studio ─webhook─> server ─queueing─> Redis ─> worker ──┐
                                                                 ├─> assembly ─> engine.round
                      simulation (an oracle answers) ────────────┘
    labels -> consensus -> split -> model (train, T dropout passes) -> acquisition (rank)
           -> storage (save) -> label_studio.publisher (publish)
    Label Studio ─/predict─> server ─> storage      no torch, no GPU in a request

Rooms, imports going down only (``.importlinter`` fails the build otherwise)::

    __main__       python -m ml_backend
    _wsgi          what `label-studio-ml start ml_backend` runs
    cli            the `ml-backend` command: parse, call, exit status
    cli_evidence   its sub-commands for those who want evidence: bench, replay, proof
    adapter        label-studio-ml's own model class over the same server code
    demo           `make demo`: services, simulated readers, live view, table
    bench          `ml-backend bench`: figures, side by side with the peers
    doctor         `ml-backend doctor`: everything between Label Studio and the worker, one line a check
    study          `ml-backend simulate`, `experiment`: many simulated runs side by side, as one report
    server         WAY IN 1: what Label Studio talks to; torch-free, answers in milliseconds
    worker         WAY IN 2: the process that trains; start (parent, touches no GPU), job (work-horse)
    simulation     WAY IN 3: the same rounds without Label Studio
    assembly       settings -> the parts of a round: the only place that names concrete classes
    engine         ONE ROUND: round (the story), ports (Protocols), split, start; shards, sharing (several workers);
                   topup, rerank, resume (publishing without training); control (what stands in the order by chance);
                   manifest, replay, start_features (whether a round comes out the same once more)
    insight        what stored rounds and labels say to the owner; torch-free, computes and asks nobody
    model          labels -> network -> pool outputs
    acquisition    pool outputs -> ranking: judged alone (scores), or together (batches, core_set, badge, typiclust)
    consensus      annotations -> labels: one file a rule, catalog
    processes      programs that we start, wait for and stop
    images         image reference -> array: sources, decoding, cache, transforms, phantoms
    label_studio   everything that speaks Label Studio's API or JSON; torch-free
    queueing       at most one round running and one waiting per project, on rq
    logs           what server and worker log: structured, with project and round, without secrets
    storage        one folder a round, and what workers hand each other; written beside and renamed into place
    settings       Settings (environment), ProjectOptions (the owner's choice); the network's certificates and proxies
    pool_outputs   what a learner hands to a strategy
    plot_parts     axes, paths and names of the figures that we draw ourselves, as SVG
    strategies     every strategy in words: for README, --help and the settings
    grouping       which images belong together: copies of one image, and the images of one patient
    records        what travels between the rooms: frozen, validated, JSON
    chance         seeded chance, decided by names: ties, orders, fixed sets of images
    bits           the same bits from the same product: set before anybody multiplies
    errors         the tree of everything that is refused, with its reason
"""

from ml_backend.bits import ask_for_the_same_bits

__all__: list[str] = []

ask_for_the_same_bits()
