"""Readers of a simulation: their matrices, their turns, and bad input."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from ml_backend.errors import SettingsError
from ml_backend.schemas import Annotation
from ml_backend.simulation.analysis import first_ranking, learning_curves
from ml_backend.simulation.dataset import READ_AT
from ml_backend.simulation.frames import _readers
from ml_backend.simulation.oracle import Oracle
from ml_backend.simulation.readers import NAMED, answers_of, named_matrix, read_readers
from ml_backend.simulation.run import do_run
from ml_backend.simulation.run_log import RoundRow, RunLog
from tests.fakes import CLASSES
from tests.unit.simulation.drawn_results import drawn_results
from tests.unit.simulation.tiny import make_data, make_plan, make_study

DATA = make_data()
HEAD = "reader,class,normal,moderate,severe\n"
MATRIX = [[0.7, 0.2, 0.1], [0.0, 1.0, 0.0], [0.25, 0.25, 0.5]]
PANEL = read_readers("fair*4,poor", CLASSES)


def answers(readers=PANEL, reads=None, seed=0, data=DATA):
    return {(one.image.id, one.rater): one.value for one in answers_of(data, readers, reads, seed)}


class TestNamed:
    def test_rows_add_up_to_one_and_tell_how_a_reader_errs(self):
        assert named_matrix("good", CLASSES)["moderate"] == pytest.approx(
            {"moderate": 0.9, "normal": 0.05, "severe": 0.05}
        )
        assert named_matrix("poor", CLASSES)["normal"] == pytest.approx(
            {"normal": 0.5, "moderate": 0.25, "severe": 0.25}
        )
        assert named_matrix("severe", CLASSES)["normal"] == pytest.approx({"normal": 0.6, "moderate": 0.4})
        assert named_matrix("severe", CLASSES)["severe"] == {"severe": 1.0}
        assert named_matrix("mild", CLASSES)["severe"] == pytest.approx({"severe": 0.6, "moderate": 0.4})
        for name in NAMED:
            for classes in (CLASSES, CLASSES[:2]):
                assert [sum(row.values()) for row in named_matrix(name, classes).values()] == pytest.approx(
                    [1] * len(classes)
                )

    def test_names_with_numbers_make_a_panel(self):
        assert list(PANEL) == ["fair-1", "fair-2", "fair-3", "fair-4", "poor-5"]


class TestFiles:
    def test_csv_json_and_python_say_the_same(self, tmp_path):
        """Columns of the CSV file in another order than the classes."""
        rows = "\n".join(f"ann,{name},{row[2]},{row[0]},{row[1]}" for name, row in zip(CLASSES, MATRIX, strict=True))
        (tmp_path / "m.csv").write_text(f"reader,class,severe,normal,moderate\n{rows}\n")
        (tmp_path / "m.json").write_text(json.dumps({"ann": MATRIX}))
        expected = {
            "ann": {name: dict(zip(CLASSES, row, strict=True)) for name, row in zip(CLASSES, MATRIX, strict=True)}
        }

        assert read_readers(str(tmp_path / "m.csv"), CLASSES) == expected
        assert read_readers(str(tmp_path / "m.json"), CLASSES) == expected
        assert read_readers(_readers({"ann": np.array(MATRIX)}) or "", CLASSES) == expected

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("goood", "there is no reader 'goood'; known are good, fair, poor, severe, mild; did you mean 'good'"),
            ("good*0", r"'good\*0': expected a number of readers from 1"),
            ("nowhere.csv", "cannot be read: .*No such file.*expected names such as"),
            ('{"ann": [[1, 0], [0, 1]]}', "'ann' has 2 rows of 2: expected 3 rows of 3 numbers"),
            ('{"ann": "good"}', "ann: Input should be a valid array; expected 3 rows of 3"),
            ('{"ann": [[0.7, 0.2, 0.05], [0, 1, 0], [0, 0, 1]]}', "'ann', class 'normal': 0.7, 0.2, 0.05 add up to 0"),
            ('{"ann": [[1.5, -0.5, 0], [0, 1, 0], [0, 0, 1]]}', "'ann', class 'normal': 1.5, -0.5, 0 add up to 1; exp"),
            ("{}", "it has no reader; expected names"),
        ],
    )  # fmt: skip
    def test_refuses_by_reader_class_and_value(self, text, message):
        with pytest.raises(SettingsError, match=message):
            read_readers(text, CLASSES)

    @pytest.mark.parametrize(
        ("table", "message"),
        [
            ("reader,class,normal,moderate,sever\n", "columns are reader, class, normal, moderate, sever: exp"),
            (HEAD + "a,normal,1,0,0\na,normal,1,0,0\n", "line 3: reader 'a' has a second row"),
            (HEAD + "a,normal,1,0,0\n", "'a' has no row of class 'moderate': expected one for"),
            (HEAD + "a,nomal,1,0,0\n", "'a' has no row of class 'moderate'"),
            (HEAD + "a,normal,one,0,0\na,moderate,0,1,0\na,severe,0,0,1\n", "nan, 0, 0 add up"),
        ],
    )  # fmt: skip
    def test_refuses_a_table_by_its_columns_and_rows(self, table, message, tmp_path):
        (tmp_path / "m.csv").write_text(table)

        with pytest.raises(SettingsError, match=message):
            read_readers(str(tmp_path / "m.csv"), CLASSES)


class TestAnswers:
    def test_follow_from_seed_reader_and_image_alone(self):
        """One more read, another panel and other images leave a reader's answers as they were."""
        few, all_of_them = answers(reads=2), answers()
        less = answers(
            {name: PANEL[name] for name in ("poor-5", "fair-2")}, data=DATA.keep(i.id for i in DATA.images[5:])
        )

        assert few.items() <= all_of_them.items()
        assert less.items() <= all_of_them.items()
        assert answers(seed=1) != all_of_them
        assert Counter(image for image, _ in few) == {i.id: 2 for i in DATA.images if DATA.split[i.id] != "test"}

    def test_have_the_shares_of_the_matrix_and_every_reader_the_same_number(self):
        data = make_data({"train": 3000, "test": 3})
        found = answers(
            {"a": read_readers(json.dumps({"a": MATRIX}), CLASSES)["a"], "b": named_matrix("good", CLASSES)},
            1,
            data=data,
        )
        of_a = [(data.truth[image], value) for (image, reader), value in found.items() if reader == "a"]
        table = Counter(of_a)

        assert len(of_a) == pytest.approx(1500, abs=4 * 27)
        for name, row in zip(CLASSES, MATRIX, strict=True):
            times = sum(table[name, answer] for answer in CLASSES)
            assert [table[name, answer] / times for answer in CLASSES] == pytest.approx(row, abs=0.09)
        assert ("moderate", "normal") not in table

    def test_real_ratings_are_played_back_and_a_seed_chooses_among_more_than_are_asked_for(self):
        first = next(i for i in DATA.images if DATA.split[i.id] == "train")
        real = [
            Annotation(image=first, rater=name, value=v, updated_at=READ_AT)
            for name, v in (("a", "severe"), ("b", None), ("c", "normal"))
        ]
        data = replace(DATA, ratings=tuple(real))

        assert answers({}, data=data) == {(first.id, one.rater): one.value for one in real}
        chosen = {frozenset(answers({}, 2, seed, data)) for seed in range(30)}
        assert {len(one) for one in chosen} == {2}
        assert len(chosen) == 3
        assert answers_of(DATA, {}, None, 0) == []


class TestRun:
    def test_a_budget_of_reads_ends_it_and_the_labels_are_the_rule_of_the_answers(self, tmp_path):
        """Four labels of three classes to start with and five images a round, two reads each."""
        plan = make_plan(readers=PANEL, reads=2, count="reads", initial=4, budget=45, baseline=False)
        study, log = make_study(plan), {}
        for run in plan.runs():
            log[run.strategy] = RunLog.of(run, plan, tmp_path)
            do_run(run, study, log[run.strategy])
        rows = [row for row in log["entropy"].read()[0] if isinstance(row, RoundRow)]

        assert {run.strategy for run in plan.runs()} == {"random", "entropy"}
        assert [(row.labels, row.reads) for row in rows] == [(12, 24), (17, 34), (22, 44)]
        oracle = Oracle.of(DATA, answers_of(DATA, PANEL, 2, 1))
        oracle.reveal(oracle.start_set(4, 1))
        severest: dict[str, int] = {}
        for one in oracle.annotations():
            if one.image.id in oracle.revealed:
                severest[one.image.id] = max(severest.get(one.image.id, 0), CLASSES.index(one.value or ""))
        right = [CLASSES[place] == DATA.truth[image] for image, place in severest.items()]
        assert rows[0].label_accuracy == sum(right) / 12
        assert 0 < sum(right) < 12

    def test_curves_and_first_rankings_count_reads_where_the_study_does(self):
        """Two reads an image, of which one image had three."""
        drawn = drawn_results(("random",), seeds=1, rounds=2)
        rows = tuple(row.model_copy(update={"reads": 2 * row.labels + 1}) for row in drawn.rounds)
        by_image = replace(drawn, rounds=rows)
        by_read = replace(by_image, summary=drawn.summary.model_copy(update={"count": "reads"}))

        counted = [learning_curves(one, lambda row: row.share)["labels"].tolist() for one in (by_image, by_read)]
        assert counted[1] == [2 * labels + 1 for labels in counted[0]]
        assert [*first_ranking(by_read).values()] == [counted[1][0]]
        shares = learning_curves(by_read, lambda row: row.share)
        assert (shares["labels"] / shares["train_images"]).tolist() == pytest.approx(
            [row.share for row in rows], abs=1e-3
        )
