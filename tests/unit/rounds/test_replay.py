"""Rounds as they are really stored, repeated; then tampered with, one thing at a time. And what a manifest holds."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from typer.testing import CliRunner

import ml_backend
from ml_backend.acquisition import CatalogStrategy
from ml_backend.cli import app
from ml_backend.config import ProjectOptions
from ml_backend.errors import StorageError
from ml_backend.images.cache import DiskCache
from ml_backend.predictions import ImageFeatures, LastLayerGradients, PoolPredictions
from ml_backend.registry import Need
from ml_backend.rounds import cold_start
from ml_backend.rounds import replay as replaying
from ml_backend.rounds.cold_start import START_FEATURES
from ml_backend.rounds.replay import (
    Replay,
    code_digest,
    listing_digest,
    make_manifest,
    round_inputs,
    versions,
)
from ml_backend.rounds.reuse import StoredPasses, rerank
from ml_backend.rounds.run import run_round
from ml_backend.schemas import Connection, ImageRef, RoundReport
from ml_backend.storage import ProjectStore, RoundStore, rounds
from ml_backend.storage.rounds import (
    Manifest,
    RoundInputs,
    file_faults,
    read_inputs,
    read_ranking,
    sha256_of,
    write_inputs,
    write_ranking,
)
from tests.fakes import (
    CLASSES,
    FakeLabels,
    FakeLearner,
    FakeProject,
    make_annotation,
    make_fit,
    make_image,
    make_report,
    make_request,
)

POOL = tuple(make_image(number) for number in range(100, 130))
LABELLED = [make_annotation(number, CLASSES[number % 3]) for number in range(12)]
OPTIONS = ProjectOptions().model_dump(mode="json")


class SeeingLearner(FakeLearner):
    """Has features and gradients too, where a strategy needs them; they follow from an image's id.

    Features before the first training are cached, as by a real learner.
    """

    def __init__(self, unreadable: Sequence[str], cache: Path) -> None:
        super().__init__(unreadable)
        self._kept = DiskCache(cache / "features")

    def embed(self, images: Sequence[ImageRef]) -> ImageFeatures:
        seen = super().embed(images)
        keys = tuple(cache_key(image_id) for image_id in seen.image_ids)
        for key, row in zip(keys, seen.features, strict=True):
            self._kept.put(key, row.astype("<f4").tobytes())
        return replace(seen, keys=keys)

    def outputs(self, pool: Sequence[ImageRef], needs: frozenset[Need]) -> PoolPredictions:
        outputs = super().outputs(pool, needs)
        rows = np.stack([np.random.default_rng(int(i)).normal(size=6) for i in outputs.image_ids]).astype(np.float32)
        if "features" in needs:
            outputs = replace(outputs, features=rows, labelled_features=rows[:2] + 1)
        if "gradients" in needs:
            outputs = replace(outputs, gradients=LastLayerGradients(rows[:, :3], rows))
        return outputs


def cache_key(image_id: str) -> str:
    """Under which the learner above caches the features of an image."""
    return f"content of {image_id}|weights|float32"


class StoringProject(FakeProject):
    """Saves its rounds as a live project does."""

    def __init__(self, store: ProjectStore, labels: FakeLabels) -> None:
        super().__init__(labels)
        self._store = store

    def save(self, report, predictions, learner, data, start_features=None):
        inputs = round_inputs(data)
        records = {} if start_features is None else {START_FEATURES: start_features}

        def seal(folder: Path) -> Manifest:
            return make_manifest(self._store, report, inputs, folder, "cpu")

        self._store.save(report, predictions, learner, records, seal=seal, inputs=inputs)


def a_round(
    project: ProjectStore,
    strategy: str = "entropy",
    *,
    annotations: Any = LABELLED,
    pool: Sequence[ImageRef] = POOL,
    **changes: object,
) -> str:
    """Run a round and keep it; its id."""
    round_id = project.next_round_id()
    request = make_request(**{"round_id": round_id, "strategy": strategy, "options": OPTIONS, **changes})
    learner = SeeingLearner(["103"], project.folder / "cache")
    run_round(request, StoringProject(project, FakeLabels(annotations, pool)), learner, CatalogStrategy(strategy))
    return round_id


def a_typical_start(project: ProjectStore, **changes: Any) -> str:
    """A round before the first training, over typical images first; two images have a label."""
    return a_round(project, annotations=LABELLED[:2], cold_start="typiclust", **changes)


MOSTLY_NORMAL = [make_annotation(number, CLASSES[number % 2]) for number in range(12)] + [make_annotation(12, "severe")]


def a_seeking_round(project: ProjectStore, **changes: Any) -> str:
    """A round that trains while one class has a single label; or, with a larger minimum, an order before it."""
    return a_round(project, annotations=MOSTLY_NORMAL, **{"min_labels_per_class": 3, **changes})


def ranked_anew(project: ProjectStore, base_id: str, strategy: str, annotations: Any = LABELLED) -> str:
    """Another strategy from the passes of a round, over a pool that has lost an image and won one."""
    base, kept = project.report(base_id), project.outputs(base_id)
    assert kept is not None
    round_id = project.next_round_id()
    changes = {"round_id": round_id, "reason": "rerank", "strategy": strategy}
    request = base.request.model_copy(update=changes)
    labels = FakeLabels(annotations, (*POOL[1:], make_image(900)))
    learner = SeeingLearner(["103"], project.folder / "cache")
    scorer, target = StoredPasses(base, kept), StoringProject(project, labels)
    rerank(request, base, target, scorer, CatalogStrategy(strategy), learner=learner)
    return round_id


@pytest.fixture
def project(tmp_path: Path) -> ProjectStore:
    return ProjectStore(tmp_path)


def replays(project: ProjectStore, only: str | None = None) -> Iterator[Replay]:
    return replaying.replays(project, project.folder / "cache", only)


def only(project: ProjectStore, round_id: str = "r000001") -> Replay:
    [found] = replays(project, round_id)
    return found


def without_fault(project: ProjectStore) -> str:
    """Why the first round cannot be replayed, which is nobody's fault."""
    found = only(project)
    assert (found.verdict, found.sound) == ("cannot", True)
    return found.sentence.partition("cannot be replayed: ")[2]


def folder(project: ProjectStore, round_id: str = "r000001") -> Path:
    return project.folder / "rounds" / round_id


def change_json(path: Path, change: Callable[[Any], object]) -> None:
    """Change a record, be it in JSON or in columns."""
    if path.name == "ranking.npz":
        content = json.loads(read_ranking(path).model_dump_json())
        change(content)
        write_ranking(path, RoundReport.model_validate(content))
    elif path.name == "inputs.npz" and (inputs := read_inputs(path)) is not None:
        content = json.loads(inputs.model_dump_json())
        change(content)
        write_inputs(path, RoundInputs.model_validate(content))
    else:
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content, indent=1))


class TestSame:
    def test_a_random_start_and_trained_rounds_and_one_ranked_anew(self, project):
        a_round(project, annotations=[])
        base = a_round(project, "entropy", control_share=0.2)
        ranked_anew(project, base, "bald")

        found = list(replays(project))

        assert [one.sentence for one in found] == [
            "r000001 random: same 3 of 3, same order of 30",
            "r000002 entropy: same 3 of 3, same order of 29",
            "r000003 bald: same 3 of 3, same order of 29",
        ]
        assert all(one.sound and not one.faults and not one.notes for one in found)

    @pytest.mark.parametrize("annotations", [LABELLED, LABELLED[:2]], ids=["trained", "typical start"])
    def test_images_that_were_put_off(self, project, annotations, tmp_path):
        """By their patients, and as near-duplicates, of which replay has no features."""
        weights = tmp_path / "weights.pt"
        weights.write_bytes(b"of a backbone")
        pool = [make_image(int(image.id), f"p{int(image.id) % 9}") for image in POOL]
        a_round(
            project,
            annotations=annotations,
            pool=pool,
            cold_start="typiclust",
            control_share=0.2,
            batch_size=5,
            per_patient=1,
            options=OPTIONS | {"weights": str(weights)},
        )

        kept = project.report("r000001").ranking
        assert kept.near_duplicates
        assert {one.reason.split()[0] for one in kept.put_off} == {"more", "nearly"}
        assert only(project).sentence.endswith(": same 5 of 5, same order of 29")

        (folder(project) / "inputs.npz").unlink()
        assert "the patients of its images are not stored" in only(project).sentence

    @pytest.mark.parametrize("strategy", ["batch_bald", "power_bald", "core_set", "typiclust", "badge", "random"])
    def test_batches_noise_features_and_gradients(self, project, strategy):
        a_round(project, strategy, control_share=0.1)

        assert only(project).verdict == "same"

    def test_a_typical_start_from_the_cache(self, project, monkeypatch):
        """The second of a pool that is larger than what competes."""
        a_typical_start(project)
        monkeypatch.setattr(cold_start, "CANDIDATES", 20)
        a_typical_start(project, control_share=0.2)

        assert [one.sentence for one in replays(project)] == [
            "r000001 typiclust: same 3 of 3, same order of 29",
            "r000002 typiclust: same 3 of 3, same order of 30",
        ]
        assert all(one.sound and not one.notes for one in replays(project))
        assert project.report("r000002").ranking.control
        kept = {path.name for path in project.folder.rglob("*.npz")}
        assert kept == {"inputs.npz", "ranking.npz"}  # the features themselves are in the cache alone

    def test_rounds_that_sought_a_class(self, project):
        """Of a network with a holdout, before the first one, and ranked anew."""
        a_seeking_round(project, control_share=0.2)
        a_seeking_round(project, min_labels_per_class=9, cold_start="herding")
        ranked_anew(project, "r000001", "bald", MOSTLY_NORMAL)

        assert [one.sentence for one in replays(project)] == [
            "r000001 entropy: same 3 of 3, same order of 29",
            "r000002 herding: same 3 of 3, same order of 29",
            "r000003 bald: same 3 of 3, same order of 29",
        ]
        assert all(one.sound and not one.notes for one in replays(project))
        for round_id in project.round_ids():
            assert set(project.report(round_id).ranking.sought.values()) == {"severe"}

    def test_a_round_without_a_manifest_is_sound(self, project):
        a_round(project)
        (folder(project) / "manifest.json").unlink()

        found = only(project)

        assert (found.verdict, found.faults, len(found.notes)) == ("same", (), 1)

    def test_a_round_that_is_not_there(self, project):
        a_round(project)

        with pytest.raises(StorageError, match="no round 'r000009'"):
            list(replays(project, "r000009"))


class TestNotStored:
    """What was swept, or lost by the cache, is no fault."""

    def test_features_are_kept_of_the_last_three_rounds(self, project):
        for _ in range(5):
            a_round(project, "core_set")

        assert [one.verdict for one in replays(project)] == ["cannot", "same", "same", "same", "same"]
        assert without_fault(project).startswith("its features are stored for the last rounds only")

    def test_a_cache_that_was_cleared(self, project):
        a_typical_start(project)
        shutil.rmtree(project.folder / "cache")

        assert "29 of 29 are no longer in the cache (first: image 100)" in without_fault(project)

    def test_an_image_that_was_dropped_and_one_that_was_computed_anew(self, project):
        """Another machine may compute other last bits, under the same key."""
        a_typical_start(project)
        kept = DiskCache(project.folder / "cache" / "features")
        kept.put(cache_key("105"), b"half")
        kept.put(cache_key("107"), np.ones(10, "<f4").tobytes())
        kept._path(cache_key("112")).unlink()

        assert (
            "1 of 29 are no longer in the cache (first: image 112) and 2 of 29 have changed (first: image 105)"
        ) in without_fault(project)

    def test_a_labelled_image_that_was_dropped(self, project):
        a_typical_start(project)
        DiskCache(project.folder / "cache" / "features")._path(cache_key("1")).unlink()

        assert "1 of 2 are no longer in the cache (first: image 1)" in without_fault(project)

    def test_a_round_of_an_older_version(self, project):
        """It recorded no features, and its manifest has none."""
        a_typical_start(project)
        (folder(project) / "features.json").unlink()
        change_json(folder(project) / "manifest.json", lambda it: it["files"].pop("features.json"))

        assert "an older version" in without_fault(project)

    def test_evidence_of_another_format(self, project):
        a_round(project, "core_set")
        path = folder(project) / "evidence.npz"
        with np.load(path) as arrays:
            old = dict(arrays)
        np.savez(path, **(old | {"format": np.array(0)}))
        change_json(folder(project) / "manifest.json", lambda it: it["files"].update({"evidence.npz": sha256_of(path)}))

        assert without_fault(project).endswith("evidence.npz is of format 0, and this version reads format 1")


class TestOtherSurroundings:
    @pytest.mark.parametrize(
        ("name", "value", "note"),
        [
            ("versions", lambda: {"numpy": "9.9", "torch": "9.9"}, f"made with numpy {np.__version__}, now 9.9"),
            ("code_digest", lambda: "0" * 64, "made by other code"),
        ],
    )
    def test_versions_and_code_are_noted_and_no_fault(self, project, monkeypatch, name, value, note):
        a_round(project)
        monkeypatch.setattr(replaying, name, value)

        found = only(project)

        assert found.sound
        assert any(one.startswith(note) for one in found.notes)

    @pytest.mark.parametrize("score", [None, 9.0], ids=["same", "differs"])
    def test_another_machine_is_noted_where_something_differs(self, project, monkeypatch, score):
        """And only there: by itself it means nothing."""
        a_round(project)
        monkeypatch.setattr(replaying, "hardware_fingerprint", lambda device: f"a slide rule for {device}")
        if score is not None:
            change_json(folder(project) / "ranking.npz", lambda it: it["ranking"]["scores"].__setitem__(0, score))

        found = only(project)

        assert found.verdict == ("same" if score is None else "differs")
        notes = [note for note in found.notes if note.startswith("made on torch ")]
        assert len(notes) == (score is not None)
        assert all("now on a slide rule for auto" in note for note in notes)


def swap(items: Any, one: Any, other: Any) -> None:
    items[one], items[other] = items[other], items[one]


class TestTamperedWith:
    @pytest.mark.parametrize(
        ("file", "change", "faults"),
        [
            (
                "ranking.npz",
                lambda it: it["ranking"]["scores"].__setitem__(4, 0.123),
                ["score 0.123 stored", "ranking.npz is not what was saved"],
            ),
            (
                "ranking.npz",
                lambda it: it["request"]["options"].update(dropout=0.1),
                ["options are not those that it was made with: dropout"],
            ),
            (
                "inputs.npz",
                lambda it: it["labels"][0].update(value="severe"),
                ["the labels are not those that it was made from", "labels, pool and request together"],
            ),
            (
                "inputs.npz",
                lambda it: it["pool"][0].update(uri="other.png"),
                ["the pool's images are not those that it was made from", "labels, pool and request together"],
            ),
        ],
        ids=["a score", "an option", "a label", "an image of the pool"],
    )
    def test_a_record(self, project, file, change, faults):
        a_round(project)
        change_json(folder(project) / file, change)

        found = only(project)

        assert not found.sound
        assert all(fault in "\n".join(found.faults) for fault in faults)

    @pytest.mark.parametrize("file", ["model.txt", "outputs.npz"])
    def test_a_byte(self, project, file):
        a_round(project)
        path = folder(project) / file
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))

        assert any(f"{file} is not what was saved" in fault for fault in only(project).faults)

    @pytest.mark.parametrize(("start", "place"), [(a_round, 2), (a_typical_start, 1)], ids=["trained", "typical"])
    def test_an_order(self, project, start, place):
        start(project)
        change_json(folder(project) / "ranking.npz", lambda it: swap(it["ranking"]["image_ids"], place - 1, 20))

        found = only(project)

        assert (found.verdict, found.same_batch, found.batch) == ("differs", 2, 3)
        assert any(fault.startswith(f"place {place}: image ") for fault in found.faults)

    def test_the_record_of_a_starts_features(self, project):
        """Two images have changed places: the order comes out differently, and the file is not what was saved."""
        a_typical_start(project)
        change_json(folder(project) / "features.json", lambda it: swap(it["kept"], "100", "111"))

        found = only(project)

        assert found.verdict == "differs"
        assert any("features.json is not what was saved" in fault for fault in found.faults)
        assert any(fault.startswith("place ") for fault in found.faults)

    @pytest.mark.parametrize(("start", "file"), [(a_typical_start, "features.json"), (a_round, "outputs.npz")])
    def test_a_file_is_gone(self, project, start, file):
        start(project)
        (folder(project) / file).unlink()

        found = only(project)

        assert (found.verdict, found.faults) == ("cannot", (f"{file} is gone",))

    def test_a_whole_round_with_its_manifest_is_found_by_the_next(self, project, tmp_path):
        """Replaced by a round that is sound in itself."""
        a_round(project)
        a_round(project)
        other = ProjectStore(tmp_path / "other")
        a_round(other, seed=1)
        for path in folder(other).iterdir():
            (folder(project) / path.name).write_bytes(path.read_bytes())

        first, second = replays(project)

        assert first.sound
        assert second.faults == ("the manifest of round r000001 is not the one that it follows",)

    def test_a_manifest_of_another_round_and_one_that_is_gone(self, project):
        a_round(project)
        a_round(project)
        (folder(project) / "manifest.json").rename(folder(project, "r000002") / "manifest.json")

        first, second = replays(project)

        assert first.sound
        assert "its manifest is that of round r000001" in second.faults

    def test_a_round_whose_predecessor_lost_its_manifest(self, project):
        a_round(project)
        a_round(project)
        (folder(project) / "manifest.json").unlink()

        _, second = replays(project)

        assert len(second.faults) == 1
        assert second.faults[0].startswith("round r000001, which it follows")

    def test_removed_passes_are_no_fault(self, project):
        for _ in range(2):
            a_round(project)
        project.next_round_id(keep_rounds=1)

        first, second = replays(project)

        assert (first.verdict, first.sound, second.verdict) == ("cannot", True, "same")
        assert "its passes were removed, as AL_KEEP_ROUNDS says" in first.sentence

    def test_a_removed_ranking_is_no_fault_and_a_forged_one_is(self, project, monkeypatch):
        monkeypatch.setattr(rounds, "KEPT_ORDERS", 1)
        for _ in range(2):
            a_round(project)
        project.next_round_id(keep_rounds=1)

        first, second = replays(project)

        assert (first.verdict, first.sound, second.verdict) == ("cannot", True, "same")
        assert first.sentence.endswith("the ranking of round r000001 was removed, as AL_KEEP_ROUNDS says")

        (folder(project) / "ranking.npz").write_bytes(b"forged")
        assert any("ranking.npz is not what was saved" in fault for fault in next(replays(project)).faults)

    def test_a_damaged_report_is_named_and_the_others_go_on(self, project):
        a_round(project)
        a_round(project)
        (folder(project) / "report.json").write_text("{")

        first, second = replays(project)

        assert (first.verdict, first.sound, second.sound) == ("cannot", False, True)


class TestCommand:
    @pytest.fixture
    def connected(self, tmp_path, monkeypatch) -> ProjectStore:
        """Project 7 with one round, in the data folder of the environment."""
        monkeypatch.setenv("AL_DATA_DIR", str(tmp_path))
        store = RoundStore(tmp_path)
        key = make_request().project
        store.connect(Connection(project=key, hostname="http://ls", label_config="<View/>"))
        a_round(store.project(key))
        return store.project(key)

    @staticmethod
    def replay(*options: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["replay", "--project", "7", *options])
        return result.exit_code, result.stdout

    def test_a_line_a_round_and_status_0_where_all_is_well(self, connected):
        assert self.replay() == (0, "r000001 entropy: same 3 of 3, same order of 29\n")

    def test_status_1_and_the_fault_where_something_was_changed(self, connected):
        change_json(folder(connected) / "inputs.npz", lambda it: it["labels"][0].update(value="severe"))

        status, out = self.replay("--round", "r000001")

        assert status == 1
        assert "FAULT the labels are not those that it was made from" in out

    def test_a_start_is_found_in_the_cache_of_the_installation(self, connected, tmp_path):
        a_typical_start(connected)
        (connected.folder / "cache").rename(tmp_path / "cache")

        assert self.replay("--round", "r000002") == (0, "r000002 typiclust: same 3 of 3, same order of 29\n")

    def test_the_machine_is_that_of_the_installations_device(self, connected, monkeypatch):
        monkeypatch.setenv("AL_DEVICE", "cpu")
        monkeypatch.setattr(replaying, "hardware_fingerprint", lambda device: f"a slide rule for {device}")
        change_json(folder(connected) / "ranking.npz", lambda it: it["ranking"]["scores"].__setitem__(0, 9.0))

        assert ", now on a slide rule for cpu: " in self.replay()[1]

    def test_json_a_line(self, connected):
        [line] = self.replay("--json")[1].splitlines()

        assert (json.loads(line)["verdict"], json.loads(line)["sound"]) == ("same", True)


def manifest_of(tmp_path: Path, *, trained: bool = False, ranked_by: str = "random", **options: object) -> Manifest:
    """Of a folder with one file, of a round with these options."""
    folder = tmp_path / "round"
    folder.mkdir(exist_ok=True)
    (folder / "report.json").write_bytes(b"{}")
    chosen = ProjectOptions.model_validate({"weights": "none", **options}).model_dump(mode="json")
    report = make_report()
    request = report.request.model_copy(update={"options": chosen})
    ranking = report.ranking.model_copy(update={"strategy": ranked_by})
    report = report.model_copy(update={"fit": make_fit() if trained else None, "request": request, "ranking": ranking})
    inputs = RoundInputs(labels=(), pool=(make_image(1), make_image(2)))
    return make_manifest(ProjectStore(tmp_path / "project"), report, inputs, folder, "cpu")


class TestManifest:
    def test_files_code_and_surroundings(self, tmp_path):
        manifest = manifest_of(tmp_path)

        assert manifest.files == {"report.json": hashlib.sha256(b"{}").hexdigest()}
        assert manifest.code == code_digest()
        assert manifest.versions["torch"] == torch.__version__
        assert manifest.versions["torchvision"] == torchvision.__version__
        assert manifest.versions == versions()
        assert "threads" in manifest.machine
        assert (manifest.previous, manifest.previous_round) == (None, None)

    @pytest.mark.parametrize(
        ("trained", "ranked_by", "hashed"),
        [(True, "random", True), (False, "random", False), (False, "typiclust", True)],
        ids=["trained", "random start", "typical start"],
    )
    def test_the_weights_file_where_a_network_ranked(self, tmp_path, trained, ranked_by, hashed):
        weights = tmp_path / "own.safetensors"
        weights.write_bytes(b"tensors")

        manifest = manifest_of(
            tmp_path, trained=trained, ranked_by=ranked_by, weights=str(weights), backbone="resnet18"
        )

        expected = (hashlib.sha256(b"tensors").hexdigest(), f"resnet18 {weights}") if hashed else ("", "no network")
        assert (manifest.weights, manifest.weights_from) == expected

    def test_inputs_are_in_the_order_of_their_ids(self):
        """Numbers in their own order: 9 before 10; a skip is no label."""
        annotations = [make_annotation(10, "severe"), make_annotation(9, "normal"), make_annotation(8, None)]
        project = FakeProject(FakeLabels(annotations, [make_image(12), make_image(11)]))

        inputs = round_inputs(project.read(CLASSES))

        assert [label.image.id for label in inputs.labels] == ["9", "10"]
        assert [image.id for image in inputs.pool] == ["11", "12"]


class TestListing:
    def test_the_order_of_arrival_does_not_matter_and_everything_else_does(self):
        one, two = make_image(1), make_image(2)

        assert listing_digest([one, two]) == listing_digest([two, one])
        assert listing_digest([one]) != listing_digest([one, two])
        assert listing_digest([one]) != listing_digest([make_image(1, patient_id="p")])


class TestCode:
    def test_is_of_every_file_with_its_name(self):
        """The definition once more: name and length, then the content."""
        root = Path(ml_backend.__file__).parent
        whole = b"".join(
            f"{path.relative_to(root).as_posix()} {path.stat().st_size}\n".encode() + path.read_bytes()
            for path in sorted(root.rglob("*.py"))
        )

        assert code_digest() == hashlib.sha256(whole).hexdigest()


class TestFileFaults:
    def test_networks_and_evidence_may_be_gone_and_nothing_else(self, tmp_path):
        files = dict.fromkeys(("model.safetensors", "network-2/model.safetensors", "evidence.npz", "report.json"), "0")

        assert file_faults(tmp_path, files) == ["report.json is gone"]
