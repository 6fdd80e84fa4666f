"""What the stored rounds and the labels say to a project's owner. Torch-free; computes, and asks nobody.

::

    records.py   what is kept beside a round
    answers.py   annotations -> who answered what, when, and how long it took
    ground_truths.py  how many labels are ground truths, and what they override
    control.py   labels told apart: from the start, by chance, chosen
    intervals.py  how sure a share is that was counted
    course.py    how the accuracy on images that came by chance went
    proof.py     what the images that came by chance say of the network
    fidelity.py  answers held against the published orders: was what readers were served what was chosen?
    rounds.py    a round's outputs -> what the page shows of it
    agreement.py  what successive networks, or two of the same labels, answer about a fixed set of images
    curve.py     where the accuracy is heading
    stopping.py  whether more labels are worth their reading, in one sentence with its evidence
    stopping_words.py  how that is said
    network.py   the newest network of a project
    history.py   when the strategy changed
    reranking.py  whether another order can be made without a training
    standing.py  what waits, what is left out and why, and whether everything is labelled
    start.py     what the start set still lacks, and how many images that takes
    reasons.py   why an image was chosen, in one line
    lines.py     what is remembered of each round without its images
    overview.py  everything that one project's page tells
"""

from ml_backend.analytics.history import INSIGHT, ImageInsight, RoundInsight, round_insight

__all__ = ["INSIGHT", "ImageInsight", "RoundInsight", "round_insight"]
