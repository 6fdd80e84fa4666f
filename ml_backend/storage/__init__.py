"""The data folder. A reader sees a whole record, file or round, or none of it, also after a crash.

::

    <root>/projects/<id>.<created>/
        connection.json               what /setup reported
        published.json                the ranking that Label Studio serves
        orders/20261126T140300000000.json  each of the last 500 that it served; its images: the same with .npy
        versions.json                 model versions that may be deleted from Label Studio
        paused.json                   the owner's pause
        hand-picks.json               images that the owner put next in the order, by whom and when
        quarantine.json               unreadable images
        tasks.sqlite                  Label Studio's tasks as they were last read; serving.json: what it serves
        same-content.json             images with equal bytes
        reading-problem.json          why Label Studio could not be read
        analysis.json                 what the pages show of tasks and rounds together; computed when these change
        embedding.npz                 features of the images on 64 axes, for similar images and the map
        proof.json                    the last comparison of the strategy with random images
        learned/r000001.json          the annotations that a round learned from
        rounds/r000001/report.json    RoundSummary and RankingHead: what does not grow with the pool
                       ranking.npz    RoundReport, the images of its ranking in columns
                       inputs.npz     the labels and the pool
                       insight.json   the network's predictions of the images that the owner is shown
                       held-out.json  predictions for labelled images by networks that were not trained on them
                       previews.json  the first images by each strategy that ranks probabilities
                       films/12.jpg   pictures of the chosen images (of the last 20 rounds)
                       agreement.json predictions for a fixed set of images; noise.json: agreement with a seed replicate
                       outputs.npz    ids, classes, probs (only with a network; of the last AL_KEEP_ROUNDS)
                       evidence.npz   features or gradients, where the strategy used these (of the last three)
                       manifest.json  hashes of all of it, and of code, weights and the manifest before
                       removed.json   files of it that only the last rounds keep, and that were removed
                       model.*        the learner's network (of the last three trained rounds; of an ensemble in
                                      folders of their own)
        rounds/.r000002/              a reserved number, or a round that is being written
        run.json                      the newest run
    <root>/cache/                     images and features, shared by all projects
"""

from ml_backend.storage.atomic import check_writable, write_atomically
from ml_backend.storage.project_state import Pause, Quarantine, ReadingStore, Thumbnails
from ml_backend.storage.rounds import ProjectStore, RankingHead, RoundStore, RoundSummary

__all__ = [
    "Pause",
    "ProjectStore",
    "Quarantine",
    "RankingHead",
    "ReadingStore",
    "RoundStore",
    "RoundSummary",
    "Thumbnails",
    "check_writable",
    "write_atomically",
]
