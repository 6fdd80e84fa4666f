"""What travels between the rooms."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ml_backend.schemas import (
    Connection,
    FitReport,
    FrozenModel,
    ImageRef,
    Label,
    ProjectKey,
    Ranking,
    Reread,
    RoundReport,
    patient_of,
)
from tests.fakes import CLASSES, make_report, make_request


class TestProjectKey:
    def test_reads_label_studios_form(self):
        """Label Studio names a project by its id and the second of its creation."""
        assert ProjectKey.parse("20.1795380628") == ProjectKey(id=20, created=1795380628)

    @pytest.mark.parametrize("text", ["20", "20.", ".17", "20.x", "-1.17", "20.1.7", "", "²0.17"])
    def test_refuses_another_form(self, text):
        with pytest.raises(ValueError, match=r"'<id>\.<unix seconds>'|greater than"):
            ProjectKey.parse(text)

    @settings(deadline=None)
    @given(st.integers(1, 2**53), st.integers(0, 2**53))
    def test_text_and_back(self, project_id, created):
        key = ProjectKey(id=project_id, created=created)

        assert ProjectKey.parse(str(key)) == key


class TestPatientOf:
    @pytest.mark.parametrize(
        ("value", "patient"),
        [
            *((value, "12") for value in (12, 12.0, "12", "12.0", "12.", " 12")),
            *((value, None) for value in (None, "", " ", float("nan"), "NaN", "None", "null", "N/A", "Unknown")),
            ("007", "007"),
            ("12.5", "12.5"),
            ("12.50", "12.50"),
            ("P12.0", "P12.0"),
            (".0", ".0"),
            (0, "0"),
        ],
    )
    def test_one_patient_is_one_text(self, value, patient):
        assert patient_of(value) == patient


class TestImageRef:
    def test_the_patient_is_the_group(self):
        assert ImageRef(id="1", uri="a.png", patient_id="p7").group == "patient p7"

    def test_without_a_patient_the_image_is_its_own_group(self):
        assert ImageRef(id="1", uri="a.png").group == "image 1"

    def test_a_patient_named_like_an_image_is_another_group(self):
        """Image 1 without a patient and a patient called 1 must not be taken for one."""
        assert ImageRef(id="1", uri="a.png").group != ImageRef(id="2", uri="b.png", patient_id="1").group


class TestRanking:
    def test_one_score_an_image(self):
        with pytest.raises(ValidationError, match="2 image ids but 1 scores"):
            Ranking(strategy="entropy", image_ids=("1", "2"), scores=(0.5,), batch_size=1)

    def test_an_image_stands_once(self):
        with pytest.raises(ValidationError, match="occurs in the ranking twice"):
            Ranking(strategy="entropy", image_ids=("1", "1"), scores=(0.5, 0.4), batch_size=1)

    @pytest.mark.parametrize("score", [float("nan"), float("inf"), float("-inf")])
    def test_scores_are_finite(self, score):
        with pytest.raises(ValidationError, match="NaN or infinite"):
            Ranking(strategy="entropy", image_ids=("1",), scores=(score,), batch_size=1)

    def test_hand_picked_images_come_first_and_leave_the_holdout(self):
        """The re-read after 2 images had 1 and 2 before it: 3 goes past it, so that it has 3, 1 and 2 before it."""
        reread = Reread(image_id="9", after=2, value=0.5, answers=1)
        ranking = Ranking(
            strategy="entropy", image_ids=("1", "2", "3", "4"), scores=(0.4, 0.3, 0.2, 0.1), batch_size=2,
            control=("2", "3"), rereads=(reread,),
        )  # fmt: skip

        found = ranking.with_first(["3", "gone", "1", "3"])

        assert (found.image_ids, found.scores) == (("3", "1", "2", "4"), (0.2, 0.4, 0.3, 0.1))
        assert (found.by_hand, found.control) == (("3", "1"), ("2",))
        assert [one.after for one in found.rereads] == [3]
        assert ranking.with_first(["gone"]) == ranking


class TestRecord:
    def test_is_frozen(self):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(make_request(), "seed", 1)  # noqa: B010 - a type checker refuses the plain assignment already

    def test_refuses_an_unknown_field(self):
        """A typo in a saved file is an error, not a field that is dropped."""
        with pytest.raises(ValidationError, match="Extra inputs"):
            Label.model_validate({"image": {"id": "1", "uri": "a"}, "value": "severe", "raters": 1, "disputd": True})

    @pytest.mark.parametrize("round_id", ["", "R1", "r 1", "../r1", "r1\n"])
    def test_a_round_id_is_safe_as_a_folder(self, round_id):
        with pytest.raises(ValidationError, match="round_id"):
            make_request(round_id=round_id)

    def test_a_round_needs_two_classes(self):
        with pytest.raises(ValidationError, match="classes"):
            make_request(classes=("normal",))

    @pytest.mark.parametrize(
        "record",
        [
            make_report(),
            Connection(
                project=ProjectKey(id=1, created=0),
                hostname="http://127.0.0.1:8080",
                label_config="<View/>",
                extra_params={"passes": 20},
            ),
            FitReport(
                epochs=4,
                best_epoch=1,
                class_weights=dict.fromkeys(CLASSES, 1.0),
                train_images=60,
                validation_images=15,
                validation_loss=0.25,
                validation_accuracy=0.5,
                validation_auroc=None,
            ),
        ],
        ids=lambda record: type(record).__name__,
    )
    def test_json_and_back(self, record: FrozenModel):
        """What is written is what is read, times with their zone and None included."""
        assert type(record).model_validate_json(record.model_dump_json()) == record

    def test_a_saved_report_keeps_its_time_zone(self):
        again = RoundReport.model_validate_json(make_report().model_dump_json())

        assert again.started_at.utcoffset() is not None
