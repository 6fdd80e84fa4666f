"""What is kept on disk: a reader sees the whole of a thing or none of it, also after a crash.

::

    <root>/projects/<id>.<created>/
        connection.json               what /setup told us
        published.json                what Label Studio serves now
        paused.json                   its owner holds the rounds
        orders/20261126T140300000000.json  each of the last 500 things that it served
        quarantine.json               the images that could not be read
        tasks.json                    the last reading of Label Studio
        learned/r000001.json          the annotations that a round learned from
        rounds/r000001/report.json    RoundReport
                       insight.json   what the owner is shown of it
                       films/12.jpg   what the chosen images look like (of the last 20 rounds)
                       agreement.json what it answers about a fixed set of images; noise.json: and its twin
                       outputs.npz    ids, classes, probs (only with a network)
                       inputs.json    the labels and the pool
                       evidence.npz   features or gradients, where the strategy looked at these (of the last three)
                       manifest.json  hashes of all of it, and of code, weights and the manifest before
                       model.*        what the learner saved (of the last three trained rounds; of a committee
                                      in folders of their own)
        rounds/.r000002/              a number that is taken; or a round that is being written
        run.json                      the newest run
        scoring/<round>-<token>/      a pool that several workers score; gone when its round is
    <root>/cache/                     images and features, shared by all projects

    files.py     writing beside and renaming; records as JSON
    outputs.py   pool outputs as a file, without pickle
    rounds.py    one folder a round
    numbers.py   the number of each; what is swept when one begins
    manifests.py what a round was made of and from, in hashes
    orders.py    what was served, one after the other
    annotations.py  what was read, what was learned from
    quarantine.py   images that could not be read, and when each is tried again
    pause.py     whether rounds start by themselves
    thumbnails.py   small pictures of chosen images
    scoring.py   what the workers that score one pool together hand to each other
"""

from ml_backend.storage.atomic import write_atomically
from ml_backend.storage.rounds import ProjectStore, RoundStore
from ml_backend.storage.scoring import ScoringFolder, ScoringTask

__all__ = ["ProjectStore", "RoundStore", "ScoringFolder", "ScoringTask", "write_atomically"]
