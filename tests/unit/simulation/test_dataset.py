"""Tables in, one checked data set out: classes, sides by patient, subsampling."""

import hashlib
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

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

LINES = [
    "c.png,bacterial,p1,train,X",
    "a.png,normal,p2,train,X",
    "b.png,viral,p3,test,Y",
    "d.png,normal,p4,test,Y",
    "e.png,odd,p5,test,Y",
]
BINARY = parse_task("normal=normal;diseased=bacterial,viral")
FILES = ("a.png", "b.png", "c.png", "d.png")


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
            ("", "expected 2 classes or more, got 0"),
            ("normal=normal", "expected 2 classes or more, got 1"),
            ("normal=a;=b", "'=b' has an empty name"),
            ("normal=a;diseased=b,,c", "'diseased=b,,c' has an empty name"),
            ("normal=;diseased=b", "'normal=' has an empty name"),
            ("normal=a;normal=b", "class 'normal' is there twice"),
            ("normal=a;diseased=b,a", "label 'a' is there twice"),
            ("normal=a,a;diseased=b", "label 'a' is there twice"),
        ],
    )
    def test_a_wrong_task_is_refused_with_the_way_to_write_it(self, text, message):
        with pytest.raises(SettingsError, match=rf"{message}; write it as 'normal=normal;diseased=bacterial,viral'"):
            parse_task(text)


class Folder:
    """A study's tables in a folder of the test."""

    def __init__(self, root: Path) -> None:
        self.images = root / "images"
        self.root = root
        self.labels = self.table(LINES)

    def table(
        self, lines: Sequence[str], header: str = "path,label,patient_id,split,source", name: str = "labels"
    ) -> Path:
        path = self.root / f"{name}.csv"
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

    def numbered(self, count: int) -> Path:
        """Features of ``0.png`` to the last one: their number and a half."""
        return self.features({f"{n}.png": [n + 0.5] for n in range(count)})

    def everything(self) -> Path:
        """Features of all images, in another order than the table's, the first being the image's place in the abc."""
        return self.features({f"{name}.png": [float("abcdef".index(name)), 0.5] for name in "ebcadf"})


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


class TestLoadDataset:
    def test_reads_a_study(self, folder):
        data = load_dataset(folder.files(*FILES), folder.labels, task=BINARY)

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
        assert [(label.image.id, label.value) for label in data.labels("train")] == [
            ("a.png", "normal"), ("c.png", "diseased"),
        ]  # fmt: skip
        assert data.labels("val") == ()

    def test_features_suffice_in_any_order(self, folder):
        data = load_dataset(None, folder.labels, features=folder.everything(), task=BINARY)

        assert data.features is not None
        assert data.features.tolist() == [[0.0, 0.5], [1.0, 0.5], [2.0, 0.5], [3.0, 0.5]]
        assert data.folder is None
        assert set(data.digests) == {"labels", "features"}
        assert "2 rows of the features belong to no image of the study" in data.notes
        with pytest.raises(SettingsError, match="4 images but features of 3"):
            DataSet(data.classes, data.images, data.truth, data.split, features=np.zeros((3, 2), np.float32))

    def test_without_task_and_patients_the_notes_name_the_guesses(self, folder):
        lines = [f"{n}.png,{('severe', 'moderate', 'normal')[n % 3]}" for n in range(30)]

        data = load_dataset(None, folder.table(lines, "path,label"), features=folder.numbered(30))

        assert data.classes == ("moderate", "normal", "severe")
        assert "ALPHABETICAL ORDER (moderate, normal, severe)" in data.notes[0]
        assert any("no patient_id: every image counts as a patient of its own" in note for note in data.notes)

    def test_splits_by_patient_where_no_side_is_given(self, folder):
        """20 patients of two images in each class: 12 of them train, 3 validate, 5 test."""
        lines = [f"{n}.png,{'ab'[n % 4 // 2]},p{n // 2}" for n in range(80)]
        labels = folder.table(lines, "path,label,patient_id")
        backwards = folder.table(lines[::-1], "path,label,patient_id", "backwards")
        features = folder.numbered(80)

        data, again, other = (
            load_dataset(None, table, features=features, split_seed=seed)
            for table, seed in ((labels, 1), (backwards, 1), (labels, 2))
        )

        assert data.counts() == {"train": {"a": 24, "b": 24}, "val": {"a": 6, "b": 6}, "test": {"a": 10, "b": 10}}
        assert all(data.split[f"{n}.png"] == data.split[f"{n + 1}.png"] for n in range(0, 80, 2))
        assert again.split == data.split != other.split
        assert "split by patient, seed 1, shares 0.6, 0.15, 0.25" in data.notes

    def test_imbalance_holds_on_every_side(self, folder):
        """12 a and 12 b on train, 8 and 8 on test: a third of 12 + 6 and of 8 + 4 is a."""
        lines = [f"{n}.png,{'ab'[n % 2]},{'train' if n < 24 else 'test'}" for n in range(40)]
        labels = folder.table(lines, "path,label,split")

        data = load_dataset(None, labels, features=folder.numbered(40), task=parse_task("a;b"), imbalance={"a": 1 / 3})

        assert data.counts() == {"train": {"a": 6, "b": 12}, "val": {"a": 0, "b": 0}, "test": {"a": 4, "b": 8}}
        assert data.features is not None
        assert data.features[:, 0].tolist() == [int(image.id.removesuffix(".png")) + 0.5 for image in data.images]
        assert data.truth.keys() == data.split.keys() == {image.id for image in data.images}
        assert "for the shares a=0.333333, 30 of 40 images were kept" in data.notes

    def test_absolute_paths_of_the_folder(self, folder):
        files = folder.files(*FILES)
        text = folder.labels.read_text()
        folder.labels.write_text(text.replace("a.png", f"{files}/a.png").replace("b.png", f"{files}//b.png"))

        assert [image.uri for image in load_dataset(files, folder.labels, task=BINARY).images] == list(FILES)


class TestRefusals:
    @pytest.mark.parametrize(
        ("line", "task", "message"),
        [
            ("f.png,normal,p1,test,X", BINARY, r"1 patients have images on more .*: patient p1 \(train, test\)"),
            ("g.png,normal,p9,test,X", BINARY, r"1 of 5 images have no features in .*: g\.png"),
            ("", parse_task("normal;viral;severe"), "no image is of class 'severe'; the labels in the table are: bact"),
            ("f.png,Bacterial,p9,test,X", BINARY, r"'Bacterial' \(1 row: line .*differ only by case"),
        ],
    )
    def test_of_a_study_on_features(self, folder, line, task, message):
        with pytest.raises(SettingsError, match=message):
            load_dataset(None, folder.table([*LINES, line]), features=folder.everything(), task=task)

    def test_of_a_single_class(self, folder):
        with pytest.raises(SettingsError, match="column label: 'normal' in every row; at least 2 classes are needed"):
            load_dataset(None, folder.table(["a.png,normal"], "path,label"), features=folder.everything())

    @pytest.mark.parametrize(
        ("files", "lines", "message"),
        [
            (("a.png", "c.png"), LINES, r"2 of 4 images of .*: b\.png \(line 4\), d\.png \(line 5\); put them there, "),
            ((), LINES, r"4 of 4 images of .*; give the folder that the paths"),
            (("a.png",), [LINES[1], f"{'b' * 300}.png,viral,,test"], r"1 of 2 images .* are not in .*: bbb.* \(line 3"),
            (("a.png",), ["../l.csv,viral,,train", LINES[1]], r"1 paths of .* lead out of .*: \.\./l\.csv \(line 2\)"),
            (FILES, [*LINES, "{files}/d.png,viral,p4,test,Y"], r"same image by two paths: d\.png; remove one"),
        ],
    )
    def test_of_a_study_on_images(self, folder, files, lines, message):
        images = folder.files(*files)
        folder.table([line.replace("{files}", str(images)) for line in lines])

        with pytest.raises(SettingsError, match=message):
            load_dataset(images, folder.labels, task=BINARY)

    def test_of_no_folder_of_images(self, folder):
        with pytest.raises(SettingsError, match=r"--images '.*labels\.csv' is not a folder"):
            load_dataset(folder.labels, folder.labels, task=BINARY)
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

    def load(self, folder: Folder, answers: Sequence[str] = ANSWERS, task: TaskMapping | None = TASK) -> DataSet:
        return load_dataset(
            None,
            folder.table(self.LABELS, "path,label,split"),
            ratings=folder.table(answers, "path,rater,label", "ratings"),
            features=folder.features({f"{name}.png": [0.5] for name in "abcde"}),
            task=task,
        )

    def test_truth_is_the_label_else_the_median(self, folder):
        """b: the label against its reader. c: between two classes the more severe. d: one class of two answers."""
        data = self.load(folder)

        assert data.truth == {"a.png": "normal", "b.png": "severe", "c.png": "severe", "d.png": "normal"}
        # All answers are kept; one that is no class of the task gave none.
        assert [(r.image.id, r.rater, r.value) for r in data.ratings] == [
            ("a.png", "ann", "severe"), ("a.png", "bob", "normal"), ("a.png", "cyd", "normal"),
            ("b.png", "ann", "normal"),
            ("c.png", "ann", "severe"), ("c.png", "bob", "normal"),
            ("d.png", "ann", "normal"), ("d.png", "bob", None),
        ]  # fmt: skip
        assert "1 answers 'blurred' count as no class: the task does not mention it" in data.notes
        assert "1 images that no reader gave a class were left out" in data.notes
        assert set(data.digests) == {"labels", "ratings", "features"}

    def test_subsampling_takes_answers_along(self, folder):
        data = self.load(folder)

        assert data.keep(["a.png", "b.png", "c.png", "d.png"]).ratings == data.ratings
        with pytest.raises(SettingsError, match="train side has no image of class 'normal'"):
            data.keep(["b.png", "c.png", "d.png"])

    @pytest.mark.parametrize(
        ("answers", "task", "message"),
        [
            (ANSWERS, None, "median of readers' answers needs the order of the classes: give --task"),
            (ANSWERS[:4], TASK, r"3 images are in .*labels\.csv but not in .*ratings\.csv: c\.png, d\.png, e\.png; e"),
            (
                (*ANSWERS, "a.png,dan,blurred"),
                TASK,
                r"readers without an answer: 'dan' \(rows: 1\); expected a class of",
            ),
            ((*ANSWERS, "z.png,ann,normal"), TASK, r"1 images are in .*ratings\.csv but not in .*labels\.csv: z\.png"),
        ],
    )
    def test_that_do_not_fit_are_refused(self, folder, answers, task, message):
        with pytest.raises(SettingsError, match=message):
            self.load(folder, answers, task)


class TestCopies:
    """Rows that hold the same image: never divided by the split that is drawn, named where the table divides them."""

    def load(self, folder: Folder, split: Sequence[str] = (), seed: int = 0) -> DataSet:
        """Ten rows, of which 5 to 9 hold the images of 0 to 4; 9 is a link to its own."""
        images = folder.files(*(f"{n}.png" for n in range(9)))
        for n in range(4):
            (images / f"{n + 5}.png").write_bytes((images / f"{n}.png").read_bytes())
        (images / "9.png").symlink_to(images / "4.png")
        rows = [f"{n}.png,{'normal' if n % 5 < 2 else 'viral'}{f',{split[n]}' if split else ''}" for n in range(10)]
        table = folder.table(rows, "path,label,split" if split else "path,label")
        return load_dataset(images, table, task=BINARY, split_seed=seed)

    @pytest.mark.parametrize("seed", range(5))
    def test_with_the_same_bytes_are_on_one_side(self, folder, seed):
        data = self.load(folder, seed=seed)

        assert [data.split[f"{n}.png"] for n in range(5)] == [data.split[f"{n}.png"] for n in range(5, 10)]
        assert "5 rows hold the same image as another row: 5.png" in " ".join(data.notes)

    def test_that_the_table_divides_are_named(self, folder):
        data = self.load(folder, split=["train"] * 5 + ["test"] * 5)

        assert "THE TABLE PUTS 5 IMAGES ON MORE THAN ONE SIDE" in " ".join(data.notes)


SHARES = (0.6, 0.15, 0.25)


def refs(patients: Sequence[int | None]) -> list[ImageRef]:
    return [
        ImageRef(id=f"{n}.png", uri=f"{n}.png", patient_id=None if patient is None else f"p{patient}")
        for n, patient in enumerate(patients)
    ]


def truth_of(images: Sequence[ImageRef], values: Sequence[str]) -> dict[str, str]:
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
        """200 patients of 1 to 4 images, which may be of two classes."""
        draw = random.Random(2)
        images = refs([n for n in range(200) for _ in range(draw.choice((1, 2, 2, 3, 4)))])
        truth = truth_of(images, draw.choices(["a", "b", "c"], (14, 36, 50), k=len(images)))

        split = split_by_patient(images, truth, 0, SHARES)

        assert all(len({split[i.id] for i in images if i.patient_id == f"p{n}"}) == 1 for n in range(200))
        for name, count in Counter(truth.values()).items():
            for side, share in zip(SIDES, SHARES, strict=True):
                assert sum(truth[i] == name and split[i] == side for i in truth) == pytest.approx(count * share, abs=2)

    def test_patients_with_many_images_are_on_all_sides_alike(self):
        """They come first, but all sides fill at one pace: 48, 12 and 20 of their 80 images."""
        images = refs([n // 4 for n in range(80)] + [100 + n for n in range(40)])

        split = split_by_patient(images, truth_of(images, ["a"] * 120), 0, SHARES)

        assert Counter(split[f"{n}.png"] for n in range(80)) == {"train": 48, "val": 12, "test": 20}

    def test_validation_may_be_empty(self):
        images = refs([None] * 10)

        split = split_by_patient(images, truth_of(images, ["a"] * 10), 0, (0.7, 0.0, 0.3))

        assert Counter(split.values()) == {"train": 7, "test": 3}

    @pytest.mark.parametrize("shares", [(0.6, 0.2, 0.3), (0.0, 0.5, 0.5), (0.9, 0.1, 0.0), (0.8, -0.2, 0.4)])
    def test_impossible_shares_are_refused(self, shares):
        with pytest.raises(SettingsError, match="must sum to 1, train and test above 0"):
            split_by_patient(refs([None]), {"0.png": "a"}, 0, shares)


Counts = dict[str, int]


class TestSubsampleToPrevalence:
    def keep(self, sides: Mapping[Side, Counts], imbalance: Mapping[str, float], seed: int = 0) -> list[str]:
        """Ids such as ``train-n-3`` of the images that stay; the classes are those of the training side."""
        truth = {
            f"{side}-{name}-{n}": name for side in sides for name, count in sides[side].items() for n in range(count)
        }
        split: dict[str, Side] = {i: side for i in truth for side in SIDES if i.startswith(side)}
        return subsample_to_prevalence(truth, split, list(sides["train"]), imbalance, seed)

    def counts(self, kept: list[str]) -> Counts:
        return dict(Counter(name.rsplit("-", 1)[0] for name in kept))

    @pytest.mark.parametrize(
        ("sides", "imbalance", "kept"),
        [
            # 14 of 100: 86 of the others keep 14, and 43 keep 7.
            (
                {"train": {"n": 60, "m": 40, "s": 46}, "test": {"n": 50, "s": 43}}, {"n": 0.14},
                {"train-n": 14, "train-m": 40, "train-s": 46, "test-n": 7, "test-s": 43},
            ),
            # 10 shall be half: 10 others stay, 3 to 2 as before.
            ({"train": {"n": 10, "m": 60, "s": 40}}, {"n": 0.5}, {"train-n": 10, "train-m": 6, "train-s": 4}),
            # Of three given shares m is the scarcest: 36 of 100.
            (
                {"train": {"n": 30, "m": 36, "s": 80}}, {"n": 0.14, "m": 0.36, "s": 0.5},
                {"train-n": 14, "train-m": 36, "train-s": 50},
            ),
            # A validation side without a free class is no obstacle.
            (
                {"train": {"a": 40, "b": 20, "c": 20}, "val": {"a": 8, "b": 4}}, {"a": 0.5},
                {"train-a": 40, "train-b": 20, "train-c": 20, "val-a": 4, "val-b": 4},
            ),
        ],
    )  # fmt: skip
    def test_keeps_as_many_as_the_shares_allow(self, sides, imbalance, kept):
        assert self.counts(self.keep(sides, imbalance)) == kept

    def test_a_smaller_share_keeps_a_subset_and_the_order_of_the_rows_changes_nothing(self):
        more, less = (self.keep({"train": {"n": 50, "s": 100}}, {"n": share}, 4) for share in (0.2, 0.1))

        assert set(less) < set(more)
        assert set(self.keep({"train": {"s": 100, "n": 50}}, {"n": 0.1}, 4)) == set(less)

    def test_what_stays_is_not_what_the_strategy_random_asks_for_first(self):
        """The same seed orders both; images kept by the bare order would all be asked for at the start."""
        kept = self.keep({"train": {"n": 400, "s": 400}}, {"n": 0.2}, 7)

        first = [kept[place] for place in seeded_order(kept, 7)][:250]

        assert np.mean(["-n-" in image_id for image_id in first]) == pytest.approx(0.2, abs=0.06)

    @pytest.mark.parametrize(
        ("imbalance", "sides", "message"),
        [
            ({"none": 0.1}, {}, "imbalance of 'none': the classes are n, s"),
            ({"n": 0.0}, {}, "above 0 and below 1"),
            ({"n": 1.0}, {}, "sum to less than 1, to leave room for s"),
            ({"n": 0.4, "s": 0.4}, {}, "n=0.4, s=0.4: shares must lie above 0 and below 1 and sum to 1"),
            ({"n": 0.01}, {}, "cannot be reached on the train side, which holds 5 n, 20 s: no image of n would be"),
            ({"s": 0.001}, {}, "5 n, 20 s: no image of s would be left"),
            ({"n": 0.2}, {"val": {"s": 4}}, "on the val side, which holds 0 n, 4 s"),
            # On validation 60 % are left for c, of which there is none.
            (
                {"a": 0.2, "b": 0.2}, {"train": {"a": 9, "b": 9, "c": 9}, "val": {"a": 8, "b": 8}},
                "on the val side, which holds 8 a, 8 b, 0 c",
            ),
        ],
    )  # fmt: skip
    def test_impossible_shares_are_refused_with_the_counts(self, imbalance, sides, message):
        with pytest.raises(SettingsError, match=message):
            self.keep({"train": {"n": 5, "s": 20}} | sides, imbalance)


class TestSides:
    @pytest.mark.parametrize(
        ("patients", "values", "sides", "message"),
        [
            ([0, 0, 1, 2], "abab", ("train", "test", "train", "test"), r"more than one side: patient p0 \(train, test"),
            ([0, 0, 1, 2], "abaa", ("train", "train", "test", "test"), r"no image of class 'b', .* 1 patients in all"),
            ([0, 0, 1], "abab", ("train", "train", "test", "test"), r"do not belong together: 3\.png"),
        ],
    )
    def test_that_are_not_apart_are_refused(self, patients, values, sides, message):
        ids = [f"{n}.png" for n in range(4)]

        with pytest.raises(SettingsError, match=message):
            DataSet(
                ("a", "b"),
                tuple(refs(patients)),
                dict(zip(ids, values, strict=True)),
                dict(zip(ids, sides, strict=True)),
            )

    def test_an_image_twice_is_refused(self):
        with pytest.raises(SettingsError, match=r"do not belong together: 0\.png"):
            DataSet(("a",), tuple(refs([0])) * 2, {"0.png": "a"}, {"0.png": "train"})
