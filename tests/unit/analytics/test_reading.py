from datetime import UTC, date, datetime, timedelta

import pytest

from ml_backend.analytics.history import Answer
from ml_backend.analytics.reading import ReadingProgress, reading_progress

NOON = datetime(2026, 11, 3, 12, tzinfo=UTC)


def answer(image: str, at: datetime = NOON, seconds: float | None = 8.0, *, skipped: bool = False) -> Answer:
    return Answer(image_id=image, rater="1", created_at=at, lead_time_s=seconds, skipped=skipped)


class TestReadingProgress:
    def test_hand_computed(self):
        found = reading_progress(
            [
                answer("imported", NOON - timedelta(days=9), None),
                answer("a", NOON - timedelta(days=1), 30.0),
                answer("b", seconds=4.0),
                answer("a", seconds=12.0),
                answer("skipped", seconds=1.0, skipped=True),
                answer("imported today", seconds=None),
            ]
        )

        assert found == ReadingProgress(images=4, day=NOON.astimezone().date(), images_of_day=2, seconds=12.0)

    def test_a_day_without_an_answer(self):
        found = reading_progress([answer("a")])

        assert found.images_on(NOON.astimezone().date()) == 1
        assert found.images_on(NOON.astimezone().date() + timedelta(days=1)) == 0

    @pytest.mark.parametrize("zone", ["Pacific/Auckland", "America/Los_Angeles"])
    def test_a_day_begins_where_the_server_stands(self, monkeypatch, zone):
        import time

        with monkeypatch.context() as patch:
            patch.setenv("TZ", zone)
            time.tzset()
            day = reading_progress([answer("a", datetime(2026, 11, 3, 23, 30, tzinfo=UTC))]).day
        time.tzset()

        assert day == date(2026, 11, 4 if zone == "Pacific/Auckland" else 3)

    def test_the_pace_is_that_of_the_last_hundred(self):
        away, program = answer("a", seconds=3600.0), answer("a", seconds=0.0)

        found = reading_progress([*[answer("a", seconds=60.0)] * 200, *[answer("a", seconds=5.0)] * 100, away, program])

        assert found.seconds == 5.0

    def test_nothing_yet(self):
        assert reading_progress([]) == ReadingProgress(images=0)
