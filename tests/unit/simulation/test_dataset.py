"""Tables in, one checked data set out: classes, sides by patient, subsampling."""

import hashlib
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_backend.errors import SettingsError
from ml_backend.schemas import ImageRef
from ml_backend.seeding import seeded_order
from ml_backend.simulation.dataset import (
    DataSet,
    TaskMapping,
    load_dataset,
    parse_task,
    split_by_patient,
    subsample_to_prevalence,
)
from ml_backend.simulation.tables import SIDES, Side


class TestParseTask:
    def test_order_is_severity(self):
        assert parse_task(" normal = normal ; diseased=bacterial, viral; ") == TaskMapping(
            ("normal", "diseased"), {"normal": "normal", "bacterial": "diseased", "viral": "diseased"}
        )

    def test_bare_names_only_state_the_order(self):
        assert parse_task("normal;moderate;severe").of == {name: name for name in ("normal", "moderate", "severe")}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "0 classes, 2 are the least"),
            ("normal=normal", "1 classes, 2 are the least"),
            ("normal=a;=b", "'=b' has an empty name"),
            ("normal=a;diseased=b,,c", "'diseased=b,,c' has an empty name"),
            ("normal=;diseased=b", "'normal=' has an empty name"),
            ("normal=a;normal=b", "class 'normal' is there twice"),
            ("normal=a;diseased=b,a", "label 'a' is there twice"),
            ("normal=a,a;diseased=b", "label 'a' is there twice"),
        ],
    )
    def test_says_what_is_wrong_and_how_to_write_it(self, text, message):
        with pytest.raises(SettingsError, match=rf"{message}; write it as 'normal=normal;diseased=bacterial,viral'"):
            parse_task(text)


LINES = [
    "c.png,bacterial,p1,train,X",
    "a.png,normal,p2,train,X",
    "b.png,viral,p3,test,Y",
    "d.png,normal,p4,test,Y",
    "e.png,odd,p5,test,Y",
]
BINARY = parse_task("normal=normal;diseased=bacterial,viral")


class Folder:
    """A study's tables in a folder of the test."""

    def __init__(self, root: Path) -> None:
        self.images = root / "images"
        self.root = root
        self.labels = self.table("labels.csv", "path,label,patient_id,split,source", LINES)

    def table(self, name: str, header: str, lines: Sequence[str]) -> Path:
        path = self.root / name
        path.write_text("\n".join([header, *lines, ""]), encoding="utf-8")
        return path

    def files(self, *names: str) -> Path:
        self.images.mkdir(exist_ok=True)
        for name in names:
            (self.images / name).write_bytes(f"image {name}".encode())
        return self.images

    def features(self, rows: Mapping[str, Sequence[float]]) -> Path:
        np.savez(self.root / "features.npz", X=np.array(list(rows.values())), path=np.array(list(rows)))
        return self.root / "features.npz"

    def everything(self) -> Path:
        """Features of all images, in another order than the table's, the first being the image's place in the abc."""
        return self.features({f"{name}.png": [float("abcdef".index(name)), 0.5] for name in "ebcadf"})


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


class TestLoadDataset:
    def test_reads_a_study(self, folder):
        data = load_dataset(folder.files("a.png", "b.png", "c.png", "d.png"), folder.labels, task=BINARY)

        assert data.classes == ("normal", "diseased")
        assert [(image.id, image.uri, image.patient_id) for image in data.images] == [
            ("a.png", "a.png", "p2"), ("b.png", "b.png", "p3"), ("c.png", "c.png", "p1"), ("d.png", "d.png", "p4"),
        ]  # fmt: skip
        assert data.truth == {"a.png": "normal", "b.png": "diseased", "c.png": "diseased", "d.png": "normal"}
        assert data.split == {"a.png": "train", "b.png": "test", "c.png": "train", "d.png": "test"}
        assert data.source == {"a.png": "X", "b.png": "Y", "c.png": "X", "d.png": "Y"}
        assert data.features is None
        assert data.folder == folder.images
        assert data.digests == {"labels": hashlib.sha256(folder.labels.read_bytes()).hexdigest()}
        assert data.notes == (
            "1 images labelled 'odd', which the task does not mention, were left out",
            "there is no validation side",
        )

    def test_features_are_a_study_of_their_own(self, folder):
        """In the order of the images, whatever the order in the file."""
        data = load_dataset(None, folder.labels, features=folder.everything(), task=BINARY)

        assert data.features is not None
        assert data.features.tolist() == [[0.0, 0.5], [1.0, 0.5], [2.0, 0.5], [3.0, 0.5]]
        assert data.folder is None
        assert set(data.digests) == {"labels", "features"}
        assert "2 rows of the features belong to no image of the study" in data.notes

    def test_without_a_task_the_order_of_the_classes_is_guessed_aloud(self, folder):
        folder.labels = folder.table(
            "labels.csv", "path,label", [f"{n}.png,{('severe', 'moderate', 'normal')[n % 3]}" for n in range(30)]
        )
        features = folder.features({f"{n}.png": [0.5] for n in range(30)})

        data = load_dataset(None, folder.labels, features=features)

        assert data.classes == ("moderate", "normal", "severe")
        assert "ALPHABETICAL ORDER (moderate, normal, severe)" in data.notes[0]

    def test_splits_by_patient_where_no_side_is_given(self, folder):
        """20 patients of two images in each class: 12 of them train, 3 validate, 5 test."""
        lines = [f"{n}.png,{'ab'[n % 4 // 2]},p{n // 2}" for n in range(80)]
        labels = folder.table("labels.csv", "path,label,patient_id", lines)
        backwards = folder.table("backwards.csv", "path,label,patient_id", lines[::-1])
        features = folder.features({f"{n}.png": [n + 0.5] for n in range(80)})

        data, again, other = (
            load_dataset(None, table, features=features, split_seed=seed)
            for table, seed in ((labels, 1), (backwards, 1), (labels, 2))
        )

        assert data.counts() == {"train": {"a": 24, "b": 24}, "val": {"a": 6, "b": 6}, "test": {"a": 10, "b": 10}}
        assert all(data.split[f"{n}.png"] == data.split[f"{n + 1}.png"] for n in range(0, 80, 2))
        assert again.split == data.split != other.split
        assert "split by patient, seed 1, shares 0.6, 0.15, 0.25" in data.notes

    def test_no_patients_are_said(self, folder):
        labels = folder.table("labels.csv", "path,label", [f"{n}.png,{'ab'[n % 2]}" for n in range(20)])

        data = load_dataset(None, labels, features=folder.features({f"{n}.png": [0.5] for n in range(20)}))

        assert any("no patient_id: every image counts as a patient of its own" in note for note in data.notes)

    def test_imbalance_holds_on_every_side(self, folder):
        """12 a and 12 b on train, 8 and 8 on test: a third of 12 + 6 and of 8 + 4 is a."""
        lines = [f"{n}.png,{'ab'[n % 2]},{'train' if n < 24 else 'test'}" for n in range(40)]
        labels = folder.table("labels.csv", "path,label,split", lines)
        features = folder.features({f"{n}.png": [n + 0.5] for n in range(40)})

        data = load_dataset(None, labels, features=features, task=parse_task("a;b"), imbalance={"a": 1 / 3})

        assert data.counts() == {"train": {"a": 6, "b": 12}, "val": {"a": 0, "b": 0}, "test": {"a": 4, "b": 8}}
        assert data.features is not None
        assert data.features[:, 0].tolist() == [int(image.id.removesuffix(".png")) + 0.5 for image in data.images]
        assert data.truth.keys() == data.split.keys() == {image.id for image in data.images}
        assert "for the shares a=0.333333, 30 of 40 images were kept" in data.notes

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("f.png,normal,p1,test,X", r"1 patients have images on more than one side: patient p1 \(train, test\)"),
            ("g.png,normal,p9,test,X", r"1 of 5 images have no features in .*: g\.png"),
        ],
    )
    def test_a_wrong_study_is_refused(self, folder, line, message):
        labels = folder.table("labels.csv", "path,label,patient_id,split,source", [*LINES, line])

        with pytest.raises(SettingsError, match=message):
            load_dataset(None, labels, features=folder.everything(), task=BINARY)

    def test_a_class_without_an_image_is_refused(self, folder):
        with pytest.raises(
            SettingsError, match="no image is of class 'severe'; the labels in the table are: bacterial, "
        ):
            load_dataset(None, folder.labels, features=folder.everything(), task=parse_task("normal;viral;severe"))

    def test_missing_files_are_named(self, folder, tmp_path_factory):
        with pytest.raises(
            SettingsError,
            match=r"2 of 4 images of .* are not in .*: b\.png \(line 4\), d\.png \(line 5\); put them there, correct",
        ):
            load_dataset(folder.files("a.png", "c.png"), folder.labels, task=BINARY)
        with pytest.raises(SettingsError, match=r"4 of 4 images of .*; give the folder that the paths"):
            load_dataset(tmp_path_factory.mktemp("empty"), folder.labels, task=BINARY)

    def test_a_name_that_no_file_can_have(self, folder):
        labels = folder.table("labels.csv", "path,label", ["a.png,normal", f"{'b' * 300}.png,viral"])

        with pytest.raises(SettingsError, match=r"1 of 2 images of .* are not in .*: bbb.* \(line 3\)"):
            load_dataset(folder.files("a.png"), labels, task=BINARY)

    @pytest.mark.parametrize(
        ("label", "message"),
        [
            ("normal", "labels.csv, column label: 'normal' in every row; at least 2 classes are needed"),
            ("mild;left", "labels.csv, column label: 'mild;left' holds a ';' or '=', by which --task tells"),
            ("grade=2", "labels.csv, column label: 'grade=2' holds a ';' or '=', by which --task tells"),
        ],
    )
    def test_labels_that_make_no_classes(self, folder, label, message):
        labels = folder.table("labels.csv", "path,label", ["a.png,normal", f"b.png,{label}"])

        with pytest.raises(SettingsError, match=message):
            load_dataset(None, labels, features=folder.everything())

    @pytest.mark.parametrize(
        ("written", "there"),
        [("A.PNG", "a.png"), ("x/b.png", "b.png"), ("u\u0308.png", "\u00fc.png"), ("c.png", "deep/er/c.png")],
    )
    def test_a_missing_file_that_lies_elsewhere(self, tmp_path, written, there):
        file = tmp_path / "images" / there
        file.parent.mkdir(parents=True)
        file.write_bytes(b"")
        table = tmp_path / "labels.csv"
        table.write_text(f"path,label\n{written},x\n{written}2,y\n", encoding="utf-8")

        with pytest.raises(SettingsError, match=f"line 2.*there is '{there}' instead of '{written}'"):
            load_dataset(tmp_path / "images", table, task=parse_task("x;y"))

    def test_absolute_paths_of_the_folder(self, folder):
        files = folder.files("a.png", "b.png", "c.png", "d.png")
        folder.labels.write_text(
            folder.labels.read_text()
            .replace("a.png", f"{folder.images}/a.png")
            .replace("b.png", f"{folder.images}//b.png")
        )

        assert [image.uri for image in load_dataset(files, folder.labels, task=BINARY).images] == [
            "a.png",
            "b.png",
            "c.png",
            "d.png",
        ]

    def test_one_image_by_two_paths(self, folder):
        files = folder.files("a.png", "b.png", "c.png", "d.png")
        table = folder.table(
            "labels.csv", "path,label,patient_id,split,source", [*LINES, f"{files}/d.png,viral,p4,test,Y"]
        )

        with pytest.raises(SettingsError, match=r"has the same image by two paths: lines 5 and 7 \('d.png'\)"):
            load_dataset(files, table, task=BINARY)

    def test_a_label_in_another_spelling_than_the_task_s(self, folder):
        folder.labels.write_text(folder.labels.read_text().replace("bacterial", "Bacterial", 1))

        with pytest.raises(SettingsError, match=r"'Bacterial' \(1 row: line .*differ only by case"):
            load_dataset(folder.files("c.png"), folder.labels, task=BINARY)

    def test_paths_out_of_the_folder_are_refused(self, folder):
        labels = folder.table("labels.csv", "path,label", ["../labels.csv,normal", "a.png,viral"])

        with pytest.raises(SettingsError, match=r"1 paths of .* lead out of .*: \.\./labels\.csv \(line 2\)"):
            load_dataset(folder.files("a.png"), labels, task=BINARY)

    def test_a_folder_that_is_none_is_refused(self, folder):
        with pytest.raises(SettingsError, match=r"--images '.*labels\.csv' is no folder"):
            load_dataset(folder.labels, folder.labels, task=BINARY)

    def test_neither_images_nor_features_is_refused(self, folder):
        with pytest.raises(SettingsError, match="needs images or features, got neither"):
            load_dataset(None, folder.labels)


class TestRatings:
    LABELS = ("a.png,,train", "b.png,severe,train", "c.png,,test", "d.png,,test", "e.png,,test")
    TASK = parse_task("normal;severe")
    ANSWERS = (
        "a.png,bob,normal", "a.png,ann,severe", "a.png,cyd,normal",
        "b.png,ann,normal",
        "c.png,ann,severe", "c.png,bob,normal",
        "d.png,ann,normal", "d.png,bob,blurred",
        "e.png,ann,unreadable", "e.png,bob,",
    )  # fmt: skip

    def load(self, folder: Folder, answers: Sequence[str] = ANSWERS, task: bool = True) -> DataSet:
        return load_dataset(
            None,
            folder.table("labels.csv", "path,label,split", self.LABELS),
            ratings=folder.table("ratings.csv", "path,rater,label", answers),
            features=folder.features({f"{name}.png": [0.5] for name in "abcde"}),
            task=self.TASK if task else None,
        )

    @pytest.fixture
    def data(self, folder):
        return self.load(folder)

    def test_truth_is_the_label_else_the_median(self, data):
        """b: the label against its reader. c: between two classes the more severe. d: one class of two answers."""
        assert data.truth == {"a.png": "normal", "b.png": "severe", "c.png": "severe", "d.png": "normal"}

    def test_all_answers_are_kept(self, data):
        """An answer that is no class of the task is one that gave none."""
        assert [(r.image.id, r.rater, r.value) for r in data.ratings] == [
            ("a.png", "ann", "severe"), ("a.png", "bob", "normal"), ("a.png", "cyd", "normal"),
            ("b.png", "ann", "normal"),
            ("c.png", "ann", "severe"), ("c.png", "bob", "normal"),
            ("d.png", "ann", "normal"), ("d.png", "bob", None),
        ]  # fmt: skip
        assert "1 answers 'blurred' count as no class: the task does not mention it" in data.notes
        assert "1 images that no reader gave a class were left out" in data.notes
        assert set(data.digests) == {"labels", "ratings", "features"}

    def test_subsampling_takes_answers_and_sources_along(self, data):
        kept = data.keep(["a.png", "b.png", "c.png", "d.png"])

        assert kept.ratings == data.ratings
        with pytest.raises(SettingsError, match="train side has no image of class 'normal'"):
            data.keep(["b.png", "c.png", "d.png"])

    def test_without_an_order_there_is_no_median(self, folder):
        with pytest.raises(
            SettingsError, match="median of readers' answers needs the order of the classes: give --task"
        ):
            self.load(folder, task=False)

    @pytest.mark.parametrize(
        ("answers", "message"),
        [
            (ANSWERS[:4], r"3 images are in .*labels\.csv but not in .*ratings\.csv: c\.png, d\.png, e\.png; every"),
            ((*ANSWERS, "z.png,ann,normal"), r"1 images are in .*ratings\.csv but not in .*labels\.csv: z\.png"),
        ],
    )
    def test_both_tables_are_of_the_same_images(self, folder, answers, message):
        with pytest.raises(SettingsError, match=message):
            self.load(folder, answers)


class TestDataSet:
    def test_labels_of_a_side(self, folder):
        data = load_dataset(None, folder.labels, features=folder.everything(), task=BINARY)

        assert [(label.image.id, label.value) for label in data.labels("train")] == [
            ("a.png", "normal"), ("c.png", "diseased"),
        ]  # fmt: skip
        assert data.labels("val") == ()

    def test_features_must_be_of_the_images(self, folder):
        data = load_dataset(None, folder.labels, features=folder.everything(), task=BINARY)

        with pytest.raises(SettingsError, match="4 images but features of 3"):
            DataSet(data.classes, data.images, data.truth, data.split, features=np.zeros((3, 2), np.float32))


class TestCopies:
    """Rows that hold the same image: never divided by the split that is drawn, named where the table divides them."""

    def rows(self, split: Sequence[str] = ()) -> list[str]:
        """Ten rows, of which 5 to 9 hold the images of 0 to 4."""
        return [f"{n}.png,{'normal' if n % 5 < 2 else 'viral'}{f',{split[n]}' if split else ''}" for n in range(10)]

    def same_bytes(self, folder: Folder) -> Path:
        images = folder.files(*(f"{n}.png" for n in range(10)))
        for number in range(5):
            (images / f"{number + 5}.png").write_bytes((images / f"{number}.png").read_bytes())
        return images

    @pytest.mark.parametrize("seed", range(5))
    def test_with_the_same_bytes_are_on_one_side(self, folder, seed):
        images = self.same_bytes(folder)

        data = load_dataset(images, folder.table("rows.csv", "path,label", self.rows()), task=BINARY, split_seed=seed)

        assert [data.split[f"{n}.png"] for n in range(5)] == [data.split[f"{n}.png"] for n in range(5, 10)]
        assert "5 rows hold the same image as another row: 5.png" in " ".join(data.notes)

    def test_a_link_to_another_file_is_that_file(self, folder):
        images = folder.files(*(f"{n}.png" for n in range(9)))
        (images / "9.png").symlink_to(images / "0.png")

        data = load_dataset(images, folder.table("rows.csv", "path,label", self.rows()), task=BINARY)

        assert data.split["9.png"] == data.split["0.png"]

    def test_that_the_table_divides_are_named(self, folder):
        images = self.same_bytes(folder)
        table = folder.table("rows.csv", "path,label,split", self.rows(["train"] * 5 + ["test"] * 5))

        data = load_dataset(images, table, task=BINARY)

        assert "THE TABLE PUTS 5 IMAGES ON MORE THAN ONE SIDE" in " ".join(data.notes)


SHARES = (0.6, 0.15, 0.25)
IDS = ["0.png", "1.png", "2.png", "3.png"]


def refs(patients: Sequence[int | None]) -> list[ImageRef]:
    return [
        ImageRef(id=f"{n}.png", uri=f"{n}.png", patient_id=None if patient is None else f"p{patient}")
        for n, patient in enumerate(patients)
    ]


def truth_of(images: list[ImageRef], values: list[str]) -> dict[str, str]:
    return {image.id: value for image, value in zip(images, values, strict=True)}


class TestSplitByPatient:
    def test_every_class_has_the_shares(self):
        """100 normal and 40 severe single images: 60, 15, 25 and 24, 6, 10."""
        images = refs([None] * 140)
        truth = truth_of(images, ["normal"] * 100 + ["severe"] * 40)

        split = split_by_patient(images, truth, 3, SHARES)

        assert Counter((split[i], truth[i]) for i in truth) == {
            ("train", "normal"): 60, ("val", "normal"): 15, ("test", "normal"): 25,
            ("train", "severe"): 24, ("val", "severe"): 6, ("test", "severe"): 10,
        }  # fmt: skip

    def test_patients_stay_whole_and_shares_near(self):
        """200 patients of 1 to 4 images, whose images may be of two classes."""
        draw = random.Random(2)
        patients = [n for n in range(200) for _ in range(draw.choice((1, 2, 2, 3, 4)))]
        images = refs(list(patients))
        truth = truth_of(images, draw.choices(["a", "b", "c"], (14, 36, 50), k=len(images)))

        split = split_by_patient(images, truth, 0, SHARES)

        assert all(len({split[i.id] for i in images if i.patient_id == f"p{n}"}) == 1 for n in range(200))
        for name, count in Counter(truth.values()).items():
            for side, share in zip(SIDES, SHARES, strict=True):
                assert sum(truth[i] == name and split[i] == side for i in truth) == pytest.approx(count * share, abs=2)

    def test_patients_with_many_images_are_on_all_sides_alike(self):
        """They come first, but all sides fill at one pace: 48, 12 and 20 of their 80 images."""
        images = refs([n // 4 for n in range(80)] + [100 + n for n in range(40)])
        truth = truth_of(images, ["a"] * 120)

        split = split_by_patient(images, truth, 0, SHARES)

        assert Counter(split[f"{n}.png"] for n in range(80)) == {"train": 48, "val": 12, "test": 20}

    @settings(deadline=None)
    @given(st.permutations(range(24)), st.integers(0, 3))
    def test_the_order_of_the_rows_changes_nothing(self, order, seed):
        images = refs([n // 2 for n in range(24)])
        truth = truth_of(images, ["a", "b", "b"] * 8)

        shuffled = [images[n] for n in order]

        split = split_by_patient(shuffled, {i.id: truth[i.id] for i in shuffled}, seed, SHARES)
        assert split == split_by_patient(images, truth, seed, SHARES)

    def test_another_seed_is_another_split(self):
        images = refs([None] * 40)
        truth = truth_of(images, ["a", "b"] * 20)

        assert len({tuple(sorted(split_by_patient(images, truth, seed, SHARES).items())) for seed in range(5)}) == 5

    def test_validation_may_be_empty(self):
        images = refs([None] * 10)

        split = split_by_patient(images, truth_of(images, ["a"] * 10), 0, (0.7, 0.0, 0.3))

        assert Counter(split.values()) == {"train": 7, "test": 3}

    @pytest.mark.parametrize("shares", [(0.6, 0.2, 0.3), (0.0, 0.5, 0.5), (0.9, 0.1, 0.0), (0.8, -0.2, 0.4)])
    def test_shares_that_are_none_are_refused(self, shares):
        with pytest.raises(SettingsError, match="must sum to 1, train and test above 0"):
            split_by_patient(refs([None]), {"0.png": "a"}, 0, shares)


class TestSharesReached:
    def study(self, **sides: dict[str, int]) -> tuple[dict[str, str], dict[str, Side]]:
        truth: dict[str, str] = {}
        split: dict[str, Side] = {}
        for side in SIDES:
            for name, count in sides.get(side, {}).items():
                for n in range(count):
                    truth[f"{side}-{name}-{n}"], split[f"{side}-{name}-{n}"] = name, side
        return truth, split

    def counts(self, kept: list[str]) -> dict[str, int]:
        return dict(Counter(name.rsplit("-", 1)[0] for name in kept))

    def test_too_many_of_the_class_go(self):
        """14 of 100: 86 of the others keep 14 normals, and 43 keep 7."""
        truth, split = self.study(train={"normal": 60, "mild": 40, "severe": 46}, test={"normal": 50, "severe": 43})

        kept = subsample_to_prevalence(truth, split, ("normal", "mild", "severe"), {"normal": 0.14}, 0)

        assert self.counts(kept) == {
            "train-normal": 14, "train-mild": 40, "train-severe": 46, "test-normal": 7, "test-severe": 43,
        }  # fmt: skip

    def test_where_the_class_is_too_rare_the_others_go(self):
        """10 normals shall be half: 10 others stay, 3 to 2 as before."""
        truth, split = self.study(train={"normal": 10, "mild": 60, "severe": 40})

        kept = subsample_to_prevalence(truth, split, ("normal", "mild", "severe"), {"normal": 0.5}, 0)

        assert self.counts(kept) == {"train-normal": 10, "train-mild": 6, "train-severe": 4}

    def test_all_classes_may_have_a_wish(self):
        """Moderate is the scarcest by its share: 36 of 100."""
        truth, split = self.study(train={"n": 30, "m": 36, "s": 80})

        kept = subsample_to_prevalence(truth, split, ("n", "m", "s"), {"n": 0.14, "m": 0.36, "s": 0.5}, 0)

        assert self.counts(kept) == {"train-n": 14, "train-m": 36, "train-s": 50}

    def test_a_smaller_share_keeps_some_of_the_same(self):
        truth, split = self.study(train={"n": 50, "s": 100})

        more, less = (set(subsample_to_prevalence(truth, split, ("n", "s"), {"n": share}, 4)) for share in (0.2, 0.1))

        assert less < more

    def test_the_order_of_the_rows_changes_nothing(self):
        truth, split = self.study(train={"n": 50, "s": 100})
        backwards = dict(reversed(truth.items()))

        assert set(subsample_to_prevalence(truth, split, ("n", "s"), {"n": 0.1}, 4)) == set(
            subsample_to_prevalence(backwards, split, ("n", "s"), {"n": 0.1}, 4)
        )

    def test_what_stays_is_not_what_the_strategy_random_asks_for_first(self):
        """The same seed orders both; images kept by the bare order would all be asked for at the start."""
        truth, split = self.study(train={"n": 400, "s": 400})
        kept = subsample_to_prevalence(truth, split, ("n", "s"), {"n": 0.2}, 7)

        in_order = [kept[place] for place in seeded_order(kept, 7)]

        first = np.mean([truth[i] == "n" for i in in_order[:250]])
        assert first == pytest.approx(0.2, abs=0.06)

    @pytest.mark.parametrize(
        ("imbalance", "message"),
        [
            ({"none": 0.1}, "imbalance of 'none': the classes are n, s"),
            ({"n": 0.0}, "above 0 and below 1"),
            ({"n": 1.0}, "sum to less than 1, to leave room for s"),
            ({"n": 0.4, "s": 0.4}, "n=0.4, s=0.4: shares must lie above 0 and below 1 and sum to 1"),
            ({"n": 0.01}, "cannot be reached on the train side, which holds 5 n, 20 s: no image of n would be left"),
            ({"s": 0.001}, "5 n, 20 s: no image of s would be left"),
        ],
    )
    def test_a_share_that_cannot_be_is_refused_with_the_numbers(self, imbalance, message):
        truth, split = self.study(train={"n": 5, "s": 20})

        with pytest.raises(SettingsError, match=message):
            subsample_to_prevalence(truth, split, ("n", "s"), imbalance, 0)

    def test_a_validation_side_without_a_free_class_is_no_obstacle(self):
        truth, split = self.study(train={"a": 40, "b": 20, "c": 20}, val={"a": 8, "b": 4})

        kept = subsample_to_prevalence(truth, split, ("a", "b", "c"), {"a": 0.5}, 0)

        assert self.counts(kept) == {"train-a": 40, "train-b": 20, "train-c": 20, "val-a": 4, "val-b": 4}

    def test_a_side_without_the_class_is_refused(self):
        truth, split = self.study(train={"a": 40, "b": 40}, val={"b": 4})

        with pytest.raises(SettingsError, match="on the val side, which holds 0 a, 4 b"):
            subsample_to_prevalence(truth, split, ("a", "b"), {"a": 0.2}, 0)

    def test_a_side_where_nobody_takes_the_rest_is_refused(self):
        """On validation 60 % are left for c, of which there is none."""
        truth, split = self.study(train={"a": 9, "b": 9, "c": 9}, val={"a": 8, "b": 8})

        with pytest.raises(SettingsError, match="on the val side, which holds 8 a, 8 b, 0 c"):
            subsample_to_prevalence(truth, split, ("a", "b", "c"), {"a": 0.2, "b": 0.2}, 0)

    @settings(deadline=None)
    @given(st.integers(20, 90), st.integers(20, 90), st.integers(20, 90), st.floats(0.1, 0.8))
    def test_within_half_an_image_a_class(self, n, m, s, share):
        truth, split = self.study(train={"n": n, "m": m, "s": s})

        kept = self.counts(subsample_to_prevalence(truth, split, ("n", "m", "s"), {"n": share}, 0))

        assert abs(kept["train-n"] - share * sum(kept.values())) <= 1.5
        # Nothing goes that could have stayed: the class, or the others, are whole.
        assert kept["train-n"] == n or (kept["train-m"], kept["train-s"]) == (m, s)


class TestCheckSides:
    IMAGES = refs([0, 0, 1, 2])

    def check(self, values: str, sides: list[Side], classes: tuple[str, ...] = ("a", "b")) -> None:
        ids = [image.id for image in self.IMAGES]
        DataSet(classes, tuple(self.IMAGES), dict(zip(ids, values, strict=True)), dict(zip(ids, sides, strict=True)))

    def test_accepts_a_study(self):
        images = refs([0, 0, 1, 1])
        DataSet(("a", "b"), tuple(images), truth_of(images, list("abab")), {"0.png": "train", "1.png": "train", "2.png": "test", "3.png": "test"})  # fmt: skip  # noqa: E501

    def test_a_patient_on_two_sides_is_named(self):
        with pytest.raises(
            SettingsError, match=r"1 patients have images on more than one side: patient p0 \(train, te"
        ):
            self.check("abab", ["train", "test", "train", "test"])

    def test_a_side_without_a_class_is_refused(self):
        with pytest.raises(SettingsError, match=r"test side has no image of class 'b', of which .* 1 patients in all"):
            self.check("abaa", ["train", "train", "test", "test"])

    def test_what_does_not_belong_together_is_named(self):
        with pytest.raises(SettingsError, match=r"do not belong together: 3\.png"):
            DataSet(("a",), tuple(self.IMAGES[:3]), dict.fromkeys(IDS, "a"), dict.fromkeys(IDS[:3], "train"))
        with pytest.raises(SettingsError, match=r"do not belong together: 0\.png"):
            DataSet(("a",), (self.IMAGES[0],) * 2, {"0.png": "a"}, {"0.png": "train"})
