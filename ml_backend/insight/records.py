"""What is kept beside a round, so that nobody who looks at it has to read the passes again."""

from typing import Annotated, Final

from pydantic import Field

from ml_backend.records import Record

__all__ = ["INSIGHT", "ImageInsight", "RoundInsight"]

INSIGHT: Final = "insight"
"""The name under which a round's insight stands in its folder."""

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class ImageInsight(Record):
    """What the network said of one image when the round ranked it, before anybody had labelled it.

    Attributes:
        place: in the ranking, from 1.
        probs: softmax output averaged over the passes, by class.
        score: acquisition value, in the unit of the round's strategy.
        aleatoric: mean entropy of the passes, in nats: what every network doubts.
        epistemic: mutual information of answer and network, in nats: what the networks disagree about.
        control: it stands there by chance, and not by its score.
    """

    image_id: str
    place: Annotated[int, Field(ge=1)]
    probs: dict[str, Share]
    score: float
    aleatoric: Annotated[float, Field(ge=0.0)]
    epistemic: Annotated[float, Field(ge=0.0)]
    control: bool = False

    @property
    def suggestion(self) -> str:
        """The most probable class; of equal ones the least severe."""
        return max(self.probs, key=lambda name: self.probs[name])

    @property
    def confidence(self) -> float:
        """Its probability."""
        return self.probs[self.suggestion]


class RoundInsight(Record):
    """A round's network on its pool.

    Attributes:
        images: of the pool, that could be read.
        expected: mean over the pool of the probabilities of each class: the model's estimate of its class balance.
        predicted: images of the pool by their most probable class.
        batch: the images of the batch, in the order of the ranking.
        control: those that stand in the ranking by chance, wherever in it.
    """

    images: Annotated[int, Field(ge=0)]
    expected: dict[str, Share]
    predicted: dict[str, int]
    batch: tuple[ImageInsight, ...]
    control: tuple[ImageInsight, ...] = ()
