"""When what is done to whom: drawn from a seed, so that a run can be repeated."""

import random
from dataclasses import dataclass
from typing import Literal, get_args

__all__ = ["DEEDS", "PHASES", "Deed", "Phase", "Step", "fits", "plan"]

Phase = Literal["idle", "reading", "training", "scoring", "saving", "import", "switch", "delete"]
"""The last three are the steps of publishing; idle: readers label, and no round runs."""

Deed = Literal["work-horse", "worker", "server", "restart Redis", "flush Redis", "stop Label Studio", "full disk"]

PHASES: tuple[Phase, ...] = get_args(Phase)
DEEDS: tuple[Deed, ...] = get_args(Deed)


@dataclass(frozen=True)
class Step:
    """One deed.

    Attributes:
        number: from 1.
        phase: in which it is done.
        deed: what is done.
        moment: where in the phase, 0 to 1; of a request: under 0.5 before it arrives, else once it is answered.
        labels: that readers submit before the damage is mended.
    """

    number: int
    phase: Phase
    deed: Deed
    moment: float
    labels: int

    def __str__(self) -> str:
        return f"{self.number}-{self.phase}-{self.deed.replace(' ', '-')}"


def fits(phase: Phase, deed: Deed) -> bool:
    """Whether there is something to do it to: without a round there is no work-horse, and nothing is written."""
    return phase != "idle" or deed not in {"work-horse", "full disk"}


def plan(kills: int, seed: int, most_labels: int) -> list[Step]:
    """So many steps; every phase comes in turn, and every deed, each time in another order.

    Args:
        kills: how many.
        seed: the same one gives the same plan.
        most_labels: that are submitted before a damage is mended.
    """
    chance = random.Random(seed)
    phases: list[Phase] = []
    deeds: list[Deed] = []
    steps = []
    for number in range(1, kills + 1):
        phases = phases or chance.sample(PHASES, len(PHASES))
        deeds = deeds or chance.sample(DEEDS, len(DEEDS))
        phase = phases.pop()
        fitting = [deed for deed in deeds if fits(phase, deed)]
        deed = fitting[0] if fitting else chance.choice([deed for deed in DEEDS if fits(phase, deed)])
        if fitting:
            deeds.remove(deed)
        # While the server is down enough is labelled for a round, of which no event ever tells.
        fewest = most_labels if deed == "server" else 0
        steps.append(Step(number, phase, deed, chance.random(), chance.randint(fewest, most_labels)))
    return steps
