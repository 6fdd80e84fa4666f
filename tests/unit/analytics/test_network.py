"""Whether there is a network: the kinds of rounds that may be the newest one."""

import pytest

from ml_backend.analytics.history import known_network
from ml_backend.schemas import RoundReport
from ml_backend.storage.rounds import RoundSummary
from tests.fakes import CLASSES, make_fit, make_report


def a_round(number: int, **changed: object) -> RoundReport:
    return make_report(f"r{number:06d}").model_copy(update=changed)


RANDOM = a_round(1)
TRAINED = a_round(2, fit=make_fit())
RANKED_ANEW = a_round(3, base="r000002")
ANEW_BY_RANDOM = RANKED_ANEW.model_copy(
    update={"ranking": RANKED_ANEW.ranking.model_copy(update={"strategy": "random"})}
)
GROWING_AGAIN = a_round(4)


@pytest.mark.parametrize(
    ("rounds", "trained_by", "ranks"),
    [
        ((), None, None),
        ((RANDOM,), None, None),
        ((RANDOM, TRAINED), "r000002", True),
        ((RANDOM, TRAINED, RANKED_ANEW), "r000002", True),
        ((RANDOM, TRAINED, ANEW_BY_RANDOM), "r000002", True),
        ((RANDOM, TRAINED, GROWING_AGAIN), "r000002", False),
        ((TRAINED, a_round(5, fit=make_fit()), a_round(6, base="r000002")), "r000005", True),
    ],
)
def test_a_network_stays_known(rounds, trained_by, ranks):
    found = known_network([*map(RoundSummary.of, rounds)])

    assert (found and found.round_id, found and found.ranks) == (trained_by, ranks)


def test_other_classes_are_not_known():
    found = known_network([RoundSummary.of(TRAINED)])

    assert found is not None
    assert found.knows(CLASSES)
    assert not found.knows(CLASSES[:2])
