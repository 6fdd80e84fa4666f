"""Rounds as they are really kept, made again; then tampered with, one thing at a time."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from ml_backend.acquisition import CatalogStrategy
from ml_backend.cli import app
from ml_backend.config import ProjectOptions
from ml_backend.errors import StorageError
from ml_backend.images.cache import DiskCache
from ml_backend.predictions import ImageFeatures, LastLayerGradients, PoolPredictions
from ml_backend.registry import Need
from ml_backend.rounds import replay as replaying
from ml_backend.rounds.interfaces import Learner, RoundParts
from ml_backend.rounds.live import ManifestWriter
from ml_backend.rounds.replay import RecordingLabelSource, Replay
from ml_backend.rounds.reuse import RerankParts, StoredPasses, rerank
from ml_backend.rounds.run import run_round
from ml_backend.rounds.seed_noise import RecordingLearner
from ml_backend.schemas import Connection, ImageRef, RoundReport
from ml_backend.storage import ProjectStore, RoundStore
from ml_backend.storage.rounds import sha256_of
from tests.fakes import (
    CLASSES,
    FakeLabels,
    FakeLearner,
    FakePublisher,
    make_annotation,
    make_image,
    make_request,
    one_reader,
)

POOL = tuple(make_image(number) for number in range(100, 130))
LABELLED = [make_annotation(number, CLASSES[number % 3]) for number in range(12)]
OPTIONS = ProjectOptions(weights="none").model_dump(mode="json")


class SeeingLearner(FakeLearner):
    """Knows features and gradients too, where a strategy needs them; they follow from an image's id.

    What it sees before the first training it keeps in a cache, as a real one does.
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
    """Under which the learner above keeps the features of an image."""
    return f"content of {image_id}|weights|float32"


class Keeps:
    """A round's store, as the live rounds have it."""

    def __init__(
        self, project: ProjectStore, inputs: RecordingLabelSource, learner: RecordingLearner | None = None
    ) -> None:
        seen = {} if learner is None else {"features": learner.start_features}
        self._rounds = ManifestWriter(project, inputs, "cpu", **seen)

    def save(self, report: RoundReport, outputs: PoolPredictions | None, learner: Learner | None) -> None:
        self._rounds.save(report, outputs, learner, {})


def a_round(project: ProjectStore, strategy: str = "entropy", *, annotations: Any = LABELLED, **changes: object) -> str:
    """Run a round and keep it; its id."""
    inputs = RecordingLabelSource(FakeLabels(annotations, POOL), one_reader)
    round_id = project.next_round_id()
    request = make_request(round_id=round_id, strategy=strategy, options=OPTIONS, **changes)
    learner = RecordingLearner(SeeingLearner(["103"], project.folder / "cache"))
    parts = RoundParts(
        labels=inputs,
        consensus=inputs.consensus,
        learner=learner,
        strategy=CatalogStrategy(strategy),
        store=Keeps(project, inputs, learner),
        publisher=FakePublisher(),
        serving=lambda: True,
    )
    run_round(request, parts)
    return round_id


def a_typical_start(project: ProjectStore, **changes: Any) -> str:
    """A round before the first training, over typical images first; two images have a label."""
    return a_round(project, annotations=LABELLED[:2], cold_start="typiclust", **changes)


def ranked_anew(project: ProjectStore, base_id: str, strategy: str) -> str:
    """Another strategy from the passes of a round, over a pool that has lost an image and won one."""
    base, kept = project.report(base_id), project.outputs(base_id)
    assert kept is not None
    inputs = RecordingLabelSource(FakeLabels(LABELLED, (*POOL[1:], make_image(900))), one_reader)
    round_id = project.next_round_id()
    changes = {"round_id": round_id, "reason": "rerank", "strategy": strategy}
    request = base.request.model_copy(update=changes)
    parts = RerankParts(
        labels=inputs,
        consensus=inputs.consensus,
        scorer=StoredPasses(base, kept),
        strategy=CatalogStrategy(strategy),
        store=Keeps(project, inputs),
        publisher=FakePublisher(),
    )
    rerank(request, base, parts)
    return round_id


@pytest.fixture
def project(tmp_path: Path) -> ProjectStore:
    return ProjectStore(tmp_path)


def replays(project: ProjectStore, only: str | None = None) -> Iterator[Replay]:
    return replaying.replays(project, project.folder / "cache", only)


def only(project: ProjectStore, round_id: str = "r000001") -> Replay:
    [found] = replays(project, round_id)
    return found


def folder(project: ProjectStore, round_id: str = "r000001") -> Path:
    return project.folder / "rounds" / round_id


def change_json(path: Path, change: Callable[[Any], object]) -> None:
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

    @pytest.mark.parametrize("strategy", ["batch_bald", "power_bald", "core_set", "typiclust", "badge", "random"])
    def test_batches_noise_features_and_gradients(self, project, strategy):
        a_round(project, strategy, control_share=0.1)

        assert only(project).verdict == "same"

    def test_a_typical_start_from_the_cache(self, project):
        a_typical_start(project)
        a_typical_start(project, control_share=0.2)

        assert [one.sentence for one in replays(project)] == [
            "r000001 typiclust: same 3 of 3, same order of 29",
            "r000002 typiclust: same 3 of 3, same order of 29",
        ]
        assert all(one.sound and not one.notes for one in replays(project))
        assert project.report("r000002").ranking.control
        assert not list(project.folder.rglob("*.npz"))  # the features themselves lie in the cache alone

    def test_what_a_strategy_looked_at_is_kept_of_the_last_three_rounds(self, project):
        for _ in range(5):
            a_round(project, "core_set")

        assert [one.verdict for one in replays(project)] == ["cannot", "same", "same", "same", "same"]
        first = only(project)
        assert first.sentence == (
            "r000001 core_set: cannot be replayed: the features that it looked at are kept of the last rounds only"
        )
        assert first.sound  # its evidence and its network were swept, which is no fault

    def test_a_round_without_a_manifest_is_told_and_sound(self, project):
        a_round(project)
        (folder(project) / "manifest.json").unlink()

        found = only(project)

        assert (found.verdict, found.faults) == ("same", ())
        assert found.notes == ("it has no manifest, so nothing says whether a file was changed",)

    def test_a_round_that_is_not_there(self, project):
        a_round(project)

        with pytest.raises(StorageError, match="no round 'r000009'"):
            list(replays(project, "r000009"))


class TestStartThatCannotBeMadeAgain:
    """The cache may lose its features, and is no evidence: that is told, and speaks against nobody."""

    def cannot(self, project: ProjectStore) -> str:
        found = only(project)
        assert (found.verdict, found.sound) == ("cannot", True)
        return found.sentence.removeprefix("r000001 typiclust: cannot be replayed: of the features that it looked at, ")

    def test_a_cache_that_was_cleared(self, project):
        a_typical_start(project)
        shutil.rmtree(project.folder / "cache")

        assert self.cannot(project) == "29 of 29 are not in the cache any more (image 100 first)"

    def test_an_image_that_was_dropped_and_one_that_was_computed_anew(self, project):
        """On another machine its last bits may be others, under the same key."""
        a_typical_start(project)
        kept = DiskCache(project.folder / "cache" / "features")
        kept.put(cache_key("105"), b"half")
        kept.put(cache_key("107"), np.ones(10, "<f4").tobytes())
        kept._path(cache_key("112")).unlink()

        assert self.cannot(project) == (
            "1 of 29 are not in the cache any more (image 112 first) and 2 of 29 are others by now (image 105 first)"
        )

    def test_a_labelled_image_that_was_dropped(self, project):
        a_typical_start(project)
        DiskCache(project.folder / "cache" / "features")._path(cache_key("1")).unlink()

        assert self.cannot(project) == "1 of 2 are not in the cache any more (image 1 first)"

    def test_a_round_of_an_older_version(self, project):
        """It noted no features, and its manifest knows of none."""
        a_typical_start(project)
        (folder(project) / "features.json").unlink()
        change_json(folder(project) / "manifest.json", lambda it: it["files"].pop("features.json"))

        found = only(project)

        assert (found.verdict, found.sound) == ("cannot", True)
        assert found.sentence == (
            "r000001 typiclust: cannot be replayed: where the features are kept that it looked at was not noted: "
            "an older version made it"
        )

    def test_evidence_of_another_format(self, project):
        a_round(project, "core_set")
        path = folder(project) / "evidence.npz"
        with np.load(path) as arrays:
            old = dict(arrays)
        np.savez(path, **(old | {"format": np.array(0)}))
        change_json(folder(project) / "manifest.json", lambda it: it["files"].update({"evidence.npz": sha256_of(path)}))

        found = only(project)

        assert (found.verdict, found.sound) == ("cannot", True)
        assert found.sentence.endswith("evidence.npz is of format 0, and this version reads format 1")


class TestAnotherWorld:
    def test_another_version_is_said_and_no_fault(self, project, monkeypatch):
        a_round(project)
        monkeypatch.setattr(replaying, "versions", lambda: {"numpy": "9.9", "torch": "9.9"})

        found = only(project)

        assert found.sound
        assert f"made with numpy {np.__version__}, now 9.9" in found.notes

    def test_other_code_is_said_and_no_fault(self, project, monkeypatch):
        a_round(project)
        monkeypatch.setattr(replaying, "code_digest", lambda: "0" * 64)

        found = only(project)

        assert found.sound
        assert any("made by other code" in note for note in found.notes)

    @pytest.mark.parametrize("score", [None, 9.0], ids=["same", "differs"])
    def test_another_machine_is_said_where_something_differs(self, project, monkeypatch, score):
        """And only there: of a machine as such nothing follows."""
        a_round(project)
        monkeypatch.setattr(replaying, "machine", lambda device: f"a slide rule for {device}")
        if score is not None:
            change_json(folder(project) / "report.json", lambda told: told["ranking"]["scores"].__setitem__(0, score))

        found = only(project)

        assert found.verdict == ("same" if score is None else "differs")
        told = [note for note in found.notes if note.startswith("made on torch ")]
        assert len(told) == (score is not None)
        assert all(
            one.endswith(", now on a slide rule for auto: the last digits of a score may differ") for one in told
        )


class TestTamperedWith:
    def faults(self, project: ProjectStore) -> str:
        found = only(project)
        assert not found.sound
        return "\n".join(found.faults)

    def test_a_score(self, project):
        a_round(project)
        change_json(folder(project) / "report.json", lambda it: it["ranking"]["scores"].__setitem__(4, 0.123))

        faults = self.faults(project)

        assert "score 0.123 stored" in faults
        assert "report.json is not what was saved" in faults

    def test_an_order(self, project):
        a_round(project)

        def swap(report: Any) -> None:
            ids = report["ranking"]["image_ids"]
            ids[1], ids[20] = ids[20], ids[1]

        change_json(folder(project) / "report.json", swap)

        found = only(project)

        assert (found.verdict, found.same_batch, found.batch) == ("differs", 2, 3)
        assert any(fault.startswith("place 2: image ") for fault in found.faults)

    def test_a_label(self, project):
        a_round(project)
        change_json(folder(project) / "inputs.json", lambda it: it["labels"][0].update(value="severe"))

        faults = self.faults(project)

        assert "the labels are not those that it was made from" in faults
        assert "labels, pool and request together are not what the round noted when it began" in faults

    def test_an_option(self, project):
        a_round(project)
        change_json(folder(project) / "report.json", lambda it: it["request"]["options"].update(dropout=0.1))

        assert "options are not those that it was made with: dropout" in self.faults(project)

    def test_a_byte_of_the_network(self, project):
        a_round(project)
        path = folder(project) / "model.txt"
        path.write_bytes(path.read_bytes() + b"!")

        assert "model.txt is not what was saved" in self.faults(project)

    def test_a_byte_of_the_outputs(self, project):
        a_round(project)
        path = folder(project) / "outputs.npz"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))

        assert "outputs.npz is not what was saved" in self.faults(project)

    def test_the_note_of_a_starts_features(self, project):
        """Two images have changed their places: the order comes out otherwise, and the file is not what was saved."""
        a_typical_start(project)

        def swap(note: Any) -> None:
            kept = note["kept"]
            kept["100"], kept["111"] = kept["111"], kept["100"]

        change_json(folder(project) / "features.json", swap)

        found = only(project)

        assert found.verdict == "differs"
        assert any("features.json is not what was saved" in fault for fault in found.faults)
        assert any(fault.startswith("place ") for fault in found.faults)

    def test_the_order_of_a_start(self, project):
        a_typical_start(project)

        def swap(report: Any) -> None:
            ids = report["ranking"]["image_ids"]
            ids[0], ids[9] = ids[9], ids[0]

        change_json(folder(project) / "report.json", swap)

        found = only(project)

        assert (found.verdict, found.same_batch) == ("differs", 2)
        assert any(fault.startswith("place 1: image ") for fault in found.faults)

    def test_the_note_of_a_starts_features_is_gone(self, project):
        a_typical_start(project)
        (folder(project) / "features.json").unlink()

        assert self.faults(project) == "features.json is gone"

    def test_the_outputs_are_gone(self, project):
        a_round(project)
        (folder(project) / "outputs.npz").unlink()

        found = only(project)

        assert found.sentence.endswith("cannot be replayed: what its network said of the pool is not kept")
        assert found.faults == ("outputs.npz is gone",)

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

    def test_a_report_that_is_damaged_is_named_and_the_others_go_on(self, project):
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

    def test_a_line_a_round_and_status_0_where_all_is_well(self, connected):
        result = CliRunner().invoke(app, ["replay", "--project", "7"])

        assert result.exit_code == 0
        assert result.stdout == "r000001 entropy: same 3 of 3, same order of 29\n"

    def test_status_1_and_the_fault_where_something_was_changed(self, connected):
        change_json(folder(connected) / "inputs.json", lambda it: it["labels"][0].update(value="severe"))

        result = CliRunner().invoke(app, ["replay", "--project", "7", "--round", "r000001"])

        assert result.exit_code == 1
        assert "FAULT the labels are not those that it was made from" in result.stdout

    def test_a_start_is_found_in_the_cache_of_the_installation(self, connected, tmp_path):
        a_typical_start(connected)
        (connected.folder / "cache").rename(tmp_path / "cache")

        result = CliRunner().invoke(app, ["replay", "--project", "7", "--round", "r000002"])

        assert (result.exit_code, result.stdout) == (0, "r000002 typiclust: same 3 of 3, same order of 29\n")

    def test_the_machine_is_that_of_the_installations_device(self, connected, monkeypatch):
        monkeypatch.setenv("AL_DEVICE", "cpu")
        monkeypatch.setattr(replaying, "machine", lambda device: f"a slide rule for {device}")
        change_json(folder(connected) / "report.json", lambda told: told["ranking"]["scores"].__setitem__(0, 9.0))

        result = CliRunner().invoke(app, ["replay", "--project", "7"])

        assert ", now on a slide rule for cpu: " in result.stdout

    def test_json_a_line(self, connected):
        result = CliRunner().invoke(app, ["replay", "--project", "7", "--json"])

        [line] = result.stdout.splitlines()
        assert (json.loads(line)["verdict"], json.loads(line)["sound"]) == ("same", True)
