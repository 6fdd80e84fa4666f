"""Simulated readers, and synthetic studies on disk."""

import csv
import itertools
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ml_backend.errors import SettingsError
from ml_backend.simulation.dataset import load_dataset, parse_task
from ml_backend.simulation.synthetic import simulated_ratings, write_synthetic_study

CLASSES = ("normal", "moderate", "severe")
SHARES = {"normal": 0.3, "moderate": 0.3, "severe": 0.4}


def by_image(rows: list[tuple[str, str, str]]) -> dict[str, list[int]]:
    answers: dict[str, list[int]] = defaultdict(list)
    for path, _, label in rows:
        answers[path].append(CLASSES.index(label))
    return answers


def agreement(severity: float) -> float:
    """Share of the pairs of readers of an image who agree."""
    images = by_image(simulated_ratings({f"{n}.png": severity for n in range(300)}, CLASSES, 8, seed=1)).values()
    return float(np.mean([a == b for votes in images for a, b in itertools.combinations(votes, 2)]))


class TestSimulatedRatings:
    def test_three_to_six_of_the_panel_read_an_image(self):
        rows = simulated_ratings({f"{n}.png": 1.0 for n in range(200)}, CLASSES, 8, seed=0)

        assert {len(votes) for votes in by_image(rows).values()} == {3, 4, 5, 6}
        assert {rater for _, rater, _ in rows} == {f"reader-{n:02d}" for n in range(1, 9)}
        assert len({row[:2] for row in rows}) == len(rows)

    def test_a_small_panel_reads_every_image(self):
        rows = simulated_ratings({"a.png": 0.0, "b.png": 2.0}, CLASSES, 3, seed=0)

        assert [row[:2] for row in rows] == [(p, f"reader-{n:02d}") for p in ("a.png", "b.png") for n in (1, 2, 3)]

    def test_readers_disagree_most_on_the_border_between_classes(self):
        assert agreement(1.0) > agreement(1.25) + 0.05 > agreement(1.5) + 0.15
        assert agreement(0.0) > agreement(0.5) + 0.3

    @pytest.mark.parametrize(("severity", "index"), [(-0.2, 0), (0.0, 0), (1.0, 1), (1.2, 1), (2.0, 2), (2.6, 2)])
    def test_the_median_is_mostly_the_class(self, severity, index):
        images = by_image(simulated_ratings({f"{n}.png": severity for n in range(200)}, CLASSES, 8, seed=2)).values()

        assert np.mean([np.median(votes) == index for votes in images]) > 0.9

    def test_readers_have_a_bias_of_their_own(self):
        """Over many images on a border, the means of the readers lie apart by more than random draws allow."""
        rows = simulated_ratings({f"{n}.png": 0.5 for n in range(600)}, CLASSES, 8, seed=3)

        means = [
            np.mean([label == "moderate" for _, r, label in rows if r == name]) for name in {r for _, r, _ in rows}
        ]

        assert max(means) - min(means) > 0.3

    def test_an_answer_depends_on_seed_and_image_alone(self):
        severity = {f"{n}.png": n / 20 for n in range(40)}
        some = dict(reversed(list(severity.items())[10:20]))

        rows = simulated_ratings(severity, CLASSES, 5, seed=4)

        assert set(simulated_ratings(some, CLASSES, 5, seed=4)) == {row for row in rows if row[0] in some}
        assert simulated_ratings(severity, CLASSES, 5, seed=5) != rows

    @pytest.mark.parametrize(("raters", "classes"), [(2, CLASSES), (3, CLASSES[:1])])
    def test_refuses_too_few(self, raters, classes):
        with pytest.raises(ValueError, match="expected 3 readers and 2 classes or more, got"):
            simulated_ratings({"a.png": 0.0}, classes, raters, seed=0)


class TestWriteSyntheticStudy:
    def write(self, folder: Path, count: int = 24, seed: int = 0) -> list[tuple[int, int]]:
        """The calls of the progress; none where nothing was written."""
        calls: list[tuple[int, int]] = []
        write_synthetic_study(
            folder, count=count, shares=SHARES, seed=seed, side=32, progress=lambda *done: calls.append(done)
        )
        return calls

    def snapshot(self, folder: Path) -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def test_is_a_study_that_loads(self, tmp_path):
        study = write_synthetic_study(tmp_path / "new" / "study", count=60, shares=SHARES, seed=1, side=32)

        data = load_dataset(study.images, study.labels, ratings=study.ratings, task=parse_task(";".join(CLASSES)))
        assert len(data.images) == 60
        assert data.counts()["train"] == pytest.approx({"normal": 11, "moderate": 11, "severe": 14}, abs=2)
        assert data.source is not None
        assert set(data.source.values()) == {"centre-1", "centre-2"}
        assert len({(i.patient_id, data.source[i.id]) for i in data.images}) == len({i.patient_id for i in data.images})
        with Image.open(study.images / data.images[0].uri) as image:
            assert (image.mode, image.size) == ("L", (32, 32))
        with study.labels.open() as file:
            assert next(csv.reader(file)) == ["path", "label", "patient_id", "source"]

    def test_is_written_once_and_anew_for_other_parameters(self, tmp_path):
        folder = tmp_path / "study"

        assert self.write(folder, count=30) == [(n, 30) for n in range(1, 31)]
        before = self.snapshot(folder)
        assert self.write(folder, count=30) == []
        assert self.snapshot(folder) == before
        self.write(folder, seed=1)
        self.write(tmp_path / "fresh", seed=1)
        assert self.snapshot(folder) == self.snapshot(tmp_path / "fresh")

    def test_an_incomplete_folder_is_rewritten(self, tmp_path):
        folder = tmp_path / "study"
        self.write(folder)
        whole = self.snapshot(folder)

        def stop(done: int, total: int) -> None:
            if done == 5:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write_synthetic_study(folder, count=10, shares=SHARES, seed=2, side=32, progress=stop)
        assert json.loads((folder / "phantoms.json").read_bytes())["complete"] is False
        assert len(self.write(folder)) == 24
        assert self.snapshot(folder) == whole

    def test_another_folder_is_left_alone(self, tmp_path):
        (tmp_path / "thesis.tex").write_text("all my work")
        (tmp_path / "file").write_text("text")

        for folder in (tmp_path, tmp_path / "file"):
            with pytest.raises(SettingsError, match="something else than drawn images: name an empty folder"):
                self.write(folder)

        assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "thesis.tex"]

    def test_an_impossible_study_touches_nothing(self, tmp_path):
        with pytest.raises(ValueError, match="positive shares"):
            self.write(tmp_path / "study", count=2)

        assert not (tmp_path / "study").exists()
