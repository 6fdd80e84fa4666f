"""Tables made of other tables: who is kept, and on which side."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from ml_backend.errors import SettingsError
from ml_backend.simulation.dataset import DataSet
from ml_backend.simulation.experiments import Tables, across_centres, two_centres, with_pool_of, without_validation
from ml_backend.simulation.tables import read_labels
from tests.unit.simulation.tiny import make_data

TABLES = Tables(Path("labels.csv"), "n=normal;m=moderate;s=severe", ratings=Path("ratings.csv"), images=Path("films"))


def with_sources(names: str = "ab") -> DataSet:
    """Patients of two images each; sources in turn, patient by patient."""
    data = make_data()
    return replace(data, source={i.id: names[int(str(i.patient_id).split("-")[1]) % len(names)] for i in data.images})


class TestTwoCentres:
    def test_the_two_largest_by_name(self):
        """C has half of the images; a and b a quarter each, and a comes first."""
        assert two_centres(with_sources("cabc")) == ("a", "c")

    def test_one_centre_is_not_enough(self):
        with pytest.raises(SettingsError, match="needs images of two sources, and the labels name a: add a column"):
            two_centres(with_sources("a"))
        with pytest.raises(SettingsError, match="name none at all"):
            two_centres(make_data())


class TestAcrossCentres:
    def test_learns_from_one_and_is_judged_by_the_other(self, tmp_path):
        data = with_sources()
        assert data.source is not None
        tables = across_centres(TABLES, data, "a", "b", tmp_path / "tables" / "a-to-b.csv")

        rows = read_labels(tables.labels)
        assert {(row.split, data.source[row.path]) for row in rows} == {("train", "a"), ("val", "a"), ("test", "b")}
        assert all(data.split[row.path] == row.split for row in rows)
        assert len(rows) == sum(
            data.source[image.id] == ("b" if data.split[image.id] == "test" else "a") for image in data.images
        )

    def test_labels_are_the_classes_and_readers_are_left_out(self, tmp_path):
        data = with_sources()
        tables = across_centres(TABLES, data, "a", "a", tmp_path / "a.csv")

        assert (tables.task, tables.ratings, tables.images) == ("normal;moderate;severe", None, Path("films"))
        assert {row.path: row.label for row in read_labels(tables.labels)}.items() <= data.truth.items()
        assert all(row.patient_id for row in read_labels(tables.labels))


class TestWithPoolOf:
    @pytest.mark.parametrize(("pool", "trained_on"), [(20, 26), (42, 48), (1000, 48)])
    def test_leaves_a_pool_of_that_size_and_the_other_sides(self, tmp_path, pool, trained_on):
        """48 training images; 2 labels of each of 3 classes at the start."""
        rows = read_labels(with_pool_of(TABLES, make_data(), pool, 2, tmp_path / "pool.csv").labels)

        assert Counter(row.split for row in rows) == {"train": trained_on, "val": 9, "test": 12}

    def test_a_start_set_of_every_class_stays(self, tmp_path):
        """Without it, a pool of one image would keep 7 images of whatever class."""
        rows = read_labels(with_pool_of(TABLES, make_data(), 1, 2, tmp_path / "pool.csv").labels)
        counts = Counter(row.label for row in rows if row.split == "train")

        assert sum(counts.values()) == 7
        assert min(counts.values()) >= 2
        assert len(counts) == 3


class TestWithoutValidation:
    def test_validation_images_are_trained_on(self, tmp_path):
        data = make_data()
        tables = without_validation(TABLES, data, tmp_path / "two.csv")

        sides = {row.path: row.split for row in read_labels(tables.labels)}
        assert sides == {image: "train" if side == "val" else side for image, side in data.split.items()}
        assert set(sides.values()) == {"train", "test"}
        assert "val" in data.split.values()

    def test_two_sides_stay_as_they_are(self, tmp_path):
        data = make_data()
        two = replace(data, split={image: "train" if side == "val" else side for image, side in data.split.items()})

        assert without_validation(TABLES, two, tmp_path / "two.csv") is TABLES
        assert not list(tmp_path.iterdir())
