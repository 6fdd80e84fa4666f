"""The visitor's options and images, and the project that the demo makes of them."""

import io
from collections import Counter
from pathlib import Path
from typing import ClassVar

import pytest
from PIL import Image
from rich.console import Console

from ml_backend.config import ProjectOptions
from ml_backend.demo.options import (
    DRAWN_CLASSES,
    DemoImage,
    DemoOptions,
    LabelStudioAddress,
    check_enough,
    choose_question,
    draw_images,
    make_plan,
    project_options,
    read_images,
)
from ml_backend.demo.summary import View
from ml_backend.errors import SettingsError


class TestDemoOptions:
    @pytest.mark.parametrize("given", [{"images": Path("x")}, {"labels": Path("y.csv")}])
    def test_images_and_labels_go_together(self, given):
        with pytest.raises(SettingsError, match="go together"):
            DemoOptions(**given)

    @pytest.mark.parametrize("given", [{"rounds": 0}, {"readers": 0}, {"count": 0}, {"side": 8}])
    def test_refuses_too_small_values(self, given):
        name, value = next(iter(given.items()))
        with pytest.raises(SettingsError, match=f"{name}={value}"):
            DemoOptions(**given)

    def test_takes_a_running_redis_from_the_environment(self, monkeypatch):
        monkeypatch.setenv("AL_REDIS_URL", "redis://there:6379/1")

        assert DemoOptions().redis_url == "redis://there:6379/1"


class TestLabelStudioAddress:
    FULL: ClassVar = {
        "AL_DEMO_LABEL_STUDIO_URL": "http://there:8080/",
        "AL_DEMO_LABEL_STUDIO_EMAIL": "a@example.com",
        "AL_DEMO_LABEL_STUDIO_PASSWORD": "secret",
        "AL_DEMO_LABEL_STUDIO_TOKEN": "0f",
    }

    def test_from_environ(self):
        address = LabelStudioAddress.from_environ(self.FULL)

        assert address is not None
        assert (address.url, address.admin.email, address.admin.token) == ("http://there:8080", "a@example.com", "0f")
        assert LabelStudioAddress.from_environ({}) is None

    def test_half_of_it_is_refused(self):
        half = {name: value for name, value in self.FULL.items() if not name.endswith(("TOKEN", "EMAIL"))}

        with pytest.raises(SettingsError, match="EMAIL and AL_DEMO_LABEL_STUDIO_TOKEN"):
            LabelStudioAddress.from_environ(half)


class TestDrawImages:
    def test_classes_have_their_shares(self):
        counts = Counter(image.label for image in draw_images(100, seed=1, side=32))

        assert counts == pytest.approx({"normal": 14, "moderate": 36, "severe": 50}, abs=1)

    def test_are_png_files_of_the_side_asked_for_with_names_that_hide_the_label(self):
        images = draw_images(12, seed=1, side=40)

        assert [image.name for image in images] == [f"image-{i:05d}.png" for i in range(12)]
        with Image.open(io.BytesIO(images[0].content)) as image:
            assert (image.format, image.size) == ("PNG", (40, 40))

    def test_the_seed_decides(self):
        assert draw_images(6, seed=3, side=32) == draw_images(6, seed=3, side=32)
        assert draw_images(6, seed=3, side=32) != draw_images(6, seed=4, side=32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "sub/b.jpg"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 100).save(path)
    (tmp_path / "images" / "page.png").write_text("<html>please log in</html>")
    (tmp_path / "outside.png").write_bytes((tmp_path / "images" / "a.png").read_bytes())
    return tmp_path / "images"


def read(folder: Path, table: str | bytes) -> list[DemoImage]:
    path = folder.parent / "labels.csv"
    path.write_bytes(table if isinstance(table, bytes) else table.encode())
    return read_images(folder, path, DRAWN_CLASSES)


class TestReadImages:
    def test_reads_images_labels_and_patients(self, folder):
        images = read(folder, "\ufeffpath, label,patient_id\n a.png , normal,p7\nsub/b.jpg,severe,\n")

        assert [(one.name, one.label, one.patient_id) for one in images] == [
            ("image-00000.png", "normal", "p7"),
            ("image-00001.jpg", "severe", None),
        ]
        assert images[0].content == (folder / "a.png").read_bytes()

    @pytest.mark.parametrize(
        ("row", "column", "seen"),
        [
            ("a.png,mild", "label", "'mild'"),
            ("a.png,", "label", "''"),
            ("a.png", "label", "''"),
            ("gone.png,normal", "path", "'gone.png'"),
            ("../outside.png,normal", "path", "'../outside.png'"),
            ("page.png,normal", "path", "'page.png'"),
            ("labels.csv,normal", "path", "'labels.csv'"),
            (",normal", "path", "''"),
            ("sub/b.jpg,normal", "path", "'sub/b.jpg'"),
            ("./sub/b.jpg,normal", "path", "'sub/b.jpg'"),
        ],
    )
    def test_a_bad_row_is_named_by_line_column_and_value(self, folder, row, column, seen):
        with pytest.raises(SettingsError, match=f"line 3, column {column}: ") as error:
            read(folder, f"path,label\nsub/b.jpg,normal\n{row}\n")

        assert seen in str(error.value)

    def test_names_the_first_of_many_bad_rows(self, folder):
        with pytest.raises(SettingsError, match=r"line 2, .*line 3, .*and 989 more"):
            read(folder, "path,label\n" + "a.png,mild\n" * 1000)

    @pytest.mark.parametrize(
        ("table", "problem"),
        [
            ("file;class\n", "no column path and no column label"),
            ("path\na.png\n", "no column label"),
            ("", "line 1 holds nothing"),
            ("path,label\n", "has no rows"),
            ("path,label\nü.png,normal".encode("latin-1"), "UTF-8"),
        ],
    )
    def test_another_table_is_refused(self, folder, table, problem):
        with pytest.raises(SettingsError, match=problem):
            read(folder, table)

    def test_a_file_instead_of_a_folder_is_refused(self, folder):
        with pytest.raises(SettingsError, match=r"IMAGES='.*a.png' .* not a directory"):
            read_images(folder / "a.png", folder / "labels.csv", DRAWN_CLASSES)


class TestProjectOptions:
    @pytest.mark.parametrize(("has_imagenet", "weights"), [(True, "imagenet"), (False, "none")])
    def test_goes_on_without_weights(self, has_imagenet, weights):
        assert project_options(DemoOptions(), has_imagenet=has_imagenet, environ={})["weights"] == weights

    def test_the_environment_replaces_a_default_in_its_type(self):
        environ = {"AL_PASSES": "7", "AL_WEIGHTS": "/w.pt", "AL_RESERVE": "all"}
        options = project_options(DemoOptions(strategy="batch_bald", seed=9), has_imagenet=True, environ=environ)

        assert [options[name] for name in ("passes", "weights", "reserve")] == [7, "/w.pt", "all"]
        assert [options[name] for name in ("strategy", "seed")] == ["batch_bald", 9]

    def test_a_wrong_value_is_named(self):
        with pytest.raises(SettingsError, match="strategy='best'"):
            project_options(DemoOptions(strategy="best"), has_imagenet=True, environ={})


class TestCheckEnough:
    OPTIONS: ClassVar = ProjectOptions(min_labels_per_class=4, retrain_after=20)

    def check(self, *counts: int, **options) -> None:
        labels = [name for name, count in zip(DRAWN_CLASSES, counts, strict=True) for _ in range(count)]
        images = [DemoImage(f"{i}.png", b"", label, None) for i, label in enumerate(labels)]
        check_enough(images, DRAWN_CLASSES, DemoOptions(**options), self.OPTIONS)

    def test_hand_computed(self):
        """Three rounds of 20, half a batch more, and one image on each of two screens: 72."""
        self.check(30, 35, 7)

        with pytest.raises(SettingsError, match="3 rounds need 72 images or more, there are 71: give a larger --count"):
            self.check(30, 34, 7)
        with pytest.raises(SettingsError, match="give more images, fewer ROUNDS"):
            self.check(30, 34, 7, images=Path("images"), labels=Path("labels.csv"))

    def test_names_the_class_that_is_too_small(self):
        with pytest.raises(
            SettingsError, match="two classes have 4 labels, but moderate has 3 and severe has 3 of 106 im"
        ):
            self.check(100, 3, 3)

    def test_a_class_that_is_absent_is_not_waited_for(self):
        self.check(50, 50, 0)


def visitor(folder: Path, labels: list[str]) -> DemoOptions:
    for i in range(len(labels)):
        Image.new("L", (8, 8), i).save(folder / f"{i}.png")
    rows = "".join(f"{i}.png,{label}\n" for i, label in enumerate(labels))
    (folder / "labels.csv").write_text(f"path,label\n{rows}")
    return DemoOptions(images=folder, labels=folder / "labels.csv")


class TestChooseQuestion:
    def test_the_labels_decide(self, tmp_path):
        options = visitor(tmp_path, ["diseased", "normal"])

        assert choose_question(None).classes == ("normal", "moderate", "severe")
        assert choose_question(options.labels).classes == ("normal", "diseased")

    def test_a_path_that_stands_there_twice_is_for_read_images_to_refuse(self, tmp_path):
        table = tmp_path / "labels.csv"
        table.write_text("path,label\ngone.png,diseased\ngone.png,normal\n")

        assert choose_question(table).classes == ("normal", "diseased")

    def test_labels_that_no_question_offers_are_named_by_row(self, tmp_path):
        labels = visitor(tmp_path, ["normal", "mild"]).labels
        assert labels is not None

        with pytest.raises(
            SettingsError, match="line 3, column label: 'mild' is not a class; known are normal, moderate"
        ):
            read_images(tmp_path, labels, choose_question(labels).classes)


class TestMakePlan:
    @pytest.fixture
    def out(self) -> io.StringIO:
        return io.StringIO()

    @pytest.fixture
    def view(self, out) -> View:
        return View(Console(file=out, width=200))

    def test_draws_images_where_the_visitor_gave_none(self, view, monkeypatch):
        monkeypatch.setenv("AL_RETRAIN_AFTER", "10")
        monkeypatch.setenv("AL_MIN_LABELS_PER_CLASS", "2")

        plan = make_plan(DemoOptions(rounds=1, count=20, side=32), choose_question(None), None, view)

        assert len(plan.images) == 20
        assert (plan.options.retrain_after, plan.options.strategy) == (10, "mean_std")

    @pytest.mark.parametrize("chosen", [None, "none"])
    def test_missing_weights_are_announced_unless_the_visitor_chose_them(
        self, view, out, monkeypatch, tmp_path, chosen
    ):
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        if chosen:
            monkeypatch.setenv("AL_WEIGHTS", chosen)

        plan = make_plan(DemoOptions(rounds=1, count=60, side=32), choose_question(None), None, view)

        assert plan.extra_params["weights"] == "none"
        assert out.getvalue().count("ImageNet weights of resnet50 are not on this machine") == (0 if chosen else 1)

    def test_too_few_images_are_refused(self, view, tmp_path):
        options = visitor(tmp_path, ["normal", "moderate", "severe"])
        question = choose_question(options.labels)
        assert options.labels is not None

        with pytest.raises(SettingsError, match="two classes have 4 labels, but normal has 1"):
            make_plan(options, question, read_images(tmp_path, options.labels, question.classes), view)
