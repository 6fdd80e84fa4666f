"""What the stored rounds and the labels show to a project's owner. Torch-free; reads the store and asks no service.

::

    history.py      records of rounds and readers: insights, strategy changes, answers, ground truths
    agreement.py    predictions of successive networks, or of seed replicates, on a fixed set of images
    evaluation.py   accuracy and calibration on randomly drawn holdout images
    answers.py      whether it learns and pays, and how good it is, in a sentence each
    readers.py      whether readers agree, and how each answers; whether uncertainty foretold disagreement
    stopping.py     whether more labels are worth their reading
    order_audit.py  whether readers were served the published order; whether it can be ranked anew
    standing.py     what waits, what is left out and why, what the next training waits for
    overview.py     all of it for one project's page
"""

from ml_backend.analytics.history import INSIGHT, ImageInsight, RoundInsight

__all__ = ["INSIGHT", "ImageInsight", "RoundInsight"]
