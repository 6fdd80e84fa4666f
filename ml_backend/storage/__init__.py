"""What is kept on disk: a reader sees the whole of a thing or none of it, also after a crash.

::

    <root>/projects/<id>.<created>/
        connection.json               what /setup told us
        published.json                what Label Studio serves now
        rounds/r000001/report.json    RoundReport
                       outputs.npz    ids, classes, probs (only with a network)
                       model.*        what the learner saved (only with a network)
        scoring/<round>-<token>/      a pool that several workers score; gone when its round is
    <root>/cache/                     images and features, shared by all projects

    files.py     writing beside and renaming; records as JSON
    outputs.py   pool outputs as a file, without pickle
    rounds.py    one folder a round
    scoring.py   what the workers that score one pool together hand to each other
"""

from ml_backend.storage.files import write_atomically
from ml_backend.storage.rounds import ProjectStore, RoundStore
from ml_backend.storage.scoring import ScoringFolder, ScoringTask

__all__ = ["ProjectStore", "RoundStore", "ScoringFolder", "ScoringTask", "write_atomically"]
