"""What experiments stand on: the user's tables, or a refusal that says what is missing; their studies' options."""

from pathlib import Path

import pytest

from ml_backend.errors import SettingsError
from ml_backend.simulation.experiments import Ground, Tables, own_tables

LABELS, NPZ = Path("labels.csv"), Path("features.npz")
BINARY = "normal=normal;diseased=bacterial,viral"


def ground(task: str = "normal;moderate;severe", *, drawn: bool = False, quick: bool = False) -> Ground:
    return Ground(Tables(LABELS, task, features=NPZ, drawn=drawn), Path("out"), seeds=3, quick=quick, workers=2)


class TestOwnTables:
    def test_none_where_films_are_to_be_drawn(self):
        assert own_tables("paper-binary", {"labels": None, "images": None}, None, 2) is None

    def test_the_users_own(self):
        tables = own_tables("paper-binary", {"labels": LABELS, "features": NPZ}, BINARY, 2)

        assert tables == Tables(LABELS, BINARY, features=NPZ)
        assert tables.classes == ("normal", "diseased")

    @pytest.mark.parametrize(
        ("given", "task", "words"),
        [
            ({"ratings": Path("r.csv")}, None, "--ratings without --labels"),
            ({}, BINARY, "--task without --labels"),
            ({"labels": LABELS}, BINARY, "--labels without --images or --features"),
            ({"labels": LABELS, "features": NPZ}, None, "give the classes, least severe first, such as 'normal=normal"),
            ({"labels": LABELS, "features": NPZ}, "a;b;c", "is about 2 classes, but --task 'a;b;c' names 3"),
        ],
    )
    def test_says_what_is_missing(self, given, task, words):
        with pytest.raises(SettingsError, match=words):
            own_tables("paper-binary", given, task, 2)


class TestGround:
    def test_own_images_are_subsampled_to_the_papers_shares(self):
        assert ground().paper_shares() == "normal=0.14,moderate=0.36,severe=0.5"
        assert ground(BINARY).paper_shares() == "normal=0.14"

    def test_drawn_films_have_them_already_and_four_classes_have_none(self):
        assert ground(drawn=True).paper_shares() is None
        assert ground("a;b;c;d").paper_shares() is None

    def test_a_study_is_the_profile_paper_up_to_half_of_the_labels(self):
        options = ground().arm(strategies="entropy", name="part", imbalance="normal=0.1").options

        assert options.command() == (
            "ml-backend simulate --labels labels.csv --out out/part --features features.npz --strategies entropy "
            "--seeds 3 --task 'normal;moderate;severe' --imbalance normal=0.1 --initial 25"
        )
        assert options.workers == 2

    def test_one_round_ends_with_the_start_set(self):
        assert ground().arm(strategies="entropy", one_round=True).options.budget == "75"
        assert ground(quick=True).arm(strategies="entropy", one_round=True).options.budget == "9"

    def test_else_the_budget_is_what_was_asked_for(self):
        assert ground().arm(strategies="entropy", budget="0.25").options.budget == "0.25"

    def test_quick_is_two_rounds_of_next_to_nothing(self):
        """Three labels of three classes, then four more."""
        options = ground(quick=True).arm(strategies="entropy", initial=10).options

        assert (options.initial, options.batch_size, options.passes, options.budget) == (3, 4, 10, "13")
