"""Which question is asked about which images."""

import io
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from ml_backend.demo.options import DemoOptions
from ml_backend.demo.project import choose_question, make_plan, visitors_films
from ml_backend.demo.view import PlainView
from ml_backend.errors import SettingsError


def visitor(tmp_path: Path, labels: list[str], **others) -> DemoOptions:
    for i in range(len(labels)):
        Image.new("L", (8, 8), i).save(tmp_path / f"{i}.png")
    rows = "".join(f"{i}.png,{label}\n" for i, label in enumerate(labels))
    (tmp_path / "labels.csv").write_text(f"path,label\n{rows}")
    return DemoOptions(images=tmp_path, labels=tmp_path / "labels.csv", **others)


class TestChooseQuestion:
    def test_drawn_films_are_graded(self):
        assert choose_question(DemoOptions()).classes == ("normal", "moderate", "severe")

    def test_a_visitors_labels_decide(self, tmp_path):
        assert choose_question(visitor(tmp_path, ["diseased", "normal"])).classes == ("normal", "diseased")

    def test_labels_that_no_question_knows_are_named_by_row(self, tmp_path):
        options = visitor(tmp_path, ["normal", "mild"])

        with pytest.raises(SettingsError, match="line 3, column label: 'mild' is no class; known are normal, moderate"):
            visitors_films(options, choose_question(options))


class TestMakePlan:
    @pytest.fixture
    def out(self) -> io.StringIO:
        return io.StringIO()

    @pytest.fixture
    def view(self, out) -> PlainView:
        return PlainView(Console(file=out, width=200))

    def test_draws_films_where_the_visitor_gave_none(self, view, monkeypatch):
        monkeypatch.setenv("AL_RETRAIN_AFTER", "10")
        monkeypatch.setenv("AL_MIN_LABELS_PER_CLASS", "2")
        options = DemoOptions(rounds=1, count=20, side=32)

        plan = make_plan(options, choose_question(options), None, view)

        assert len(plan.films) == 20
        assert (plan.options.retrain_after, plan.options.strategy) == (10, "mean_std")

    def test_missing_weights_are_said_in_one_line(self, view, out, monkeypatch, tmp_path):
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        options = DemoOptions(rounds=1, count=60, side=32)

        plan = make_plan(options, choose_question(options), None, view)

        assert plan.extra_params["weights"] == "none"
        assert out.getvalue().count("ImageNet weights of resnet50 are not on this machine") == 1

    def test_weights_that_the_visitor_chose_are_not_doubted(self, view, out, monkeypatch, tmp_path):
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        monkeypatch.setenv("AL_WEIGHTS", "none")
        options = DemoOptions(rounds=1, count=60, side=32)

        make_plan(options, choose_question(options), None, view)

        assert "ImageNet" not in out.getvalue()

    def test_too_few_images_are_refused_before_anything_is_labelled(self, view, tmp_path):
        options = visitor(tmp_path, ["normal", "moderate", "severe"])
        question = choose_question(options)

        with pytest.raises(SettingsError, match="every class has 4 labels, but normal has 1"):
            make_plan(options, question, visitors_films(options, question), view)
