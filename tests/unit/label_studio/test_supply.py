import pytest

from ml_backend.config import ProjectOptions
from ml_backend.label_studio.publisher import low_water, publication_size, remaining_published
from ml_backend.schemas import PublishedRanking
from tests.fakes import NOON

SERVED = PublishedRanking(
    version="v", round_id="r000001", image_ids=("1", "2", "3"), annotations=10, seconds={}, published_at=NOON
)


@pytest.mark.parametrize(
    ("batch_size", "reserve", "low", "together"),
    [(20, 80, 40, 100), (20, 0, 10, 20), (1, 0, 1, 1), (20, "all", 0, None)],
)
def test_low_water(batch_size, reserve, low, together):
    options = ProjectOptions(batch_size=batch_size, reserve=reserve)

    assert (low_water(options), publication_size(options)) == (low, together)


@pytest.mark.parametrize(("annotations", "left"), [(10, 3), (12, 1), (14, -1), (9, 3), (None, 3)])
def test_remaining_published(annotations, left):
    assert remaining_published(SERVED, annotations) == left


def test_nothing_seems_used_up_where_it_was_not_noted():
    assert remaining_published(SERVED.model_copy(update={"annotations": None}), 1000) == 3
