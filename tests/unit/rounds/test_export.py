"""A real round's network, exported and used: card, ONNX, predictions of files."""

import csv
import dataclasses
import io
import json
import re
import runpy
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import SecretStr
from pydicom.uid import BasicTextSRStorage
from structlog.testing import capture_logs

from ml_backend.acquisition import CatalogStrategy
from ml_backend.acquisition.pointwise import bald
from ml_backend.analytics.evaluation import wilson
from ml_backend.analytics.history import HELD_OUT, HeldOutPredictions
from ml_backend.config import ProjectOptions, Settings
from ml_backend.errors import RoundError, SettingsError, UnknownRound, WeightsError
from ml_backend.images.decode import decode_image
from ml_backend.images.source import FolderSource
from ml_backend.images.synthetic import draw_pool
from ml_backend.images.transforms import to_input
from ml_backend.model import export as exporting
from ml_backend.model.ensemble import make_learner
from ml_backend.model.export import ExportedModel, load_networks, onnx_passes, save_networks
from ml_backend.model.learner import McDropoutLearner
from ml_backend.predictions import PoolPredictions
from ml_backend.rounds import tracking
from ml_backend.rounds.export import ModelCard, make_card, open_exported, readme, round_to_export
from ml_backend.rounds.predict import Predicted, predict_files, predict_project
from ml_backend.rounds.replay import make_manifest, round_inputs
from ml_backend.rounds.run import run_round
from ml_backend.rounds.split import fold_split
from ml_backend.schemas import Annotation, Connection, ImageRef, ProjectKey, RoundReport
from ml_backend.storage import ProjectStore, RoundStore
from ml_backend.storage.rounds import sha256_of
from tests.command_line import run_cli
from tests.fakes import CLASSES, NOON, FakeLabels, FakeProject, make_report, make_request
from tests.golden_studio import Studio
from tests.manual import commands_run_by
from tests.unit.images.test_dicom import file_of, radiograph

EXPORT, PREDICT = commands_run_by(__file__)
SIDE, LABELLED, IMAGES = 32, 18, 42
OPTIONS = ProjectOptions(
    backbone="timm/test_resnet", weights="none", image_side=SIDE, passes=7, committee=2, epochs=3, finetune="head"
)
CONFIG = '<View><Image name="i" value="$image"/><Choices name="c" toName="i">{}</Choices></View>'.format(
    "".join(f'<Choice value="{name}"/>' for name in CLASSES)
)


class StoringProject(FakeProject):
    """Saves its rounds as a live project does."""

    def __init__(self, store: ProjectStore, labels: FakeLabels) -> None:
        super().__init__(labels)
        self._store = store

    def save(self, report, predictions, learner, data, start_features=None):
        inputs = round_inputs(data)
        records = {HELD_OUT: HeldOutPredictions(images=report.fit.held_out)}
        seal = partial(make_manifest, self._store, report, inputs, device="cpu")
        self._store.save(report, predictions, learner, records, seal=seal, inputs=inputs)


class Trained(NamedTuple):
    """A project whose second round has trained two networks, and the folder of its images."""

    data: Path
    key: ProjectKey
    store: ProjectStore
    images: Path
    pool: tuple[ImageRef, ...]
    outputs: PoolPredictions

    def run(self, *words: str, folder: Path | None = None) -> CompletedProcess[str]:
        """``ml-backend`` without a Label Studio."""
        return run_cli(words, {"AL_DATA_DIR": str(self.data), "AL_DEVICE": "cpu", "PATH": ""}, folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root = tmp_path_factory.mktemp("trained")
    images = root / "images"
    images.mkdir()
    arrays, labels, _ = draw_pool(IMAGES, (1, 1, 1), seed=0, side=SIDE)
    for number, array in enumerate(arrays):
        Image.fromarray(array).save(images / f"{number:02d}.png")
    refs = [ImageRef(id=str(number), uri=f"{number:02d}.png", patient_id=f"p{number}") for number in range(IMAGES)]
    annotations = [
        Annotation(image=ref, rater="ann", value=CLASSES[label], updated_at=NOON)
        for ref, label in zip(refs[:LABELLED], labels, strict=False)
    ]
    installation = RoundStore(root / "data")
    request = make_request(round_id="r000002", strategy="bald", options=OPTIONS.model_dump(mode="json"))
    installation.connect(Connection(project=request.project, hostname="http://away", label_config=CONFIG))
    store = installation.project(request.project)
    store.next_round_id()
    store.save(make_report("r000001"), None, None)
    store.next_round_id()

    def make(options, seed, tell):
        return McDropoutLearner(
            options, FolderSource(images), installation.cache, device="cpu", seed=seed, progress=tell
        )

    learner = make_learner(make, OPTIONS, partial(fold_split, seed=0), lambda *_: None)
    pool = tuple(refs[LABELLED:])
    run_round(request, StoringProject(store, FakeLabels(annotations, pool)), learner, CatalogStrategy("bald"))
    outputs = store.outputs("r000002")
    assert outputs is not None
    return Trained(root / "data", request.project, store, images, pool, outputs)


@pytest.fixture(scope="module")
def exported(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "model"
    done = trained.run(*EXPORT.words[1:], folder=out.parent)
    assert done.returncode == 0, done.stderr
    assert "round 2 of project 7: timm/test_resnet, 7 passes" in done.stdout
    assert "Not a medical device" in done.stdout
    return out


@pytest.fixture
def score(trained: Trained, tmp_path: Path) -> Callable[[Path], PoolPredictions]:
    def outputs(folder: Path) -> PoolPredictions:
        model = ExportedModel(load_networks(folder), FolderSource(trained.images), tmp_path, "cpu")
        return model.outputs(trained.pool, lambda _: None)

    return outputs


class TestExport:
    def test_predicts_the_rounds_pool_to_the_bit(self, trained, exported, score):
        found = score(exported)

        assert found.image_ids == trained.outputs.image_ids
        assert np.array_equal(found.probs, trained.outputs.probs)

    def test_onnx_gives_the_same_passes_and_ranking(self, trained, exported):
        pixels = np.stack([np.asarray(Image.open(trained.images / image.uri)) for image in trained.pool])

        without, passes = onnx_passes(exported, pixels)

        assert passes == pytest.approx(trained.outputs.probs, abs=1e-5)
        ours, theirs = (bald(torch.from_numpy(probs)).numpy() for probs in (trained.outputs.probs, passes))
        assert theirs == pytest.approx(ours, abs=1e-5)
        order = ours[np.argsort(-theirs)]
        assert (np.diff(order) <= 1e-5).all()  # but for ties within the tolerance
        networks = load_networks(exported)
        exact = [
            one.network(to_input(torch.from_numpy(pixels), one.network.backbone.normalisation)).softmax(-1)
            for one in networks
        ]
        assert without == pytest.approx(torch.stack(exact).mean(0).detach().numpy(), abs=1e-5)

    def test_card_says_what_the_round_knows(self, trained, exported):
        card = ModelCard.model_validate_json((exported / "card.json").read_text())
        report = trained.store.report("r000002")

        assert (card.project, card.round_id, card.classes, card.networks, card.passes) == (7, "r000002", CLASSES, 2, 7)
        assert (card.trained, card.image_side, card.backbone) == ("head", SIDE, "timm/test_resnet")
        assert card.labels_per_class == report.labels_per_class
        assert sum(card.prevalence.values()) == pytest.approx(1)
        assert report.fit is not None
        assert card.validation is not None
        assert card.validation.value == pytest.approx(report.fit.validation_accuracy)
        assert (card.validation.low, card.validation.high) == wilson(
            round(report.fit.validation_accuracy * LABELLED), LABELLED
        )
        held_out = trained.store.record("r000002", HELD_OUT, HeldOutPredictions)
        assert held_out is not None
        severe = [one.predicted == one.label for one in held_out.images if one.label == "severe"]
        assert card.recall["severe"] is not None
        assert (card.recall["severe"].value, card.recall["severe"].n) == (np.mean(severe), len(severe))
        assert card.holdout is None
        assert card.manifest == trained.store.manifest_hash("r000002")
        assert card.trained_at == report.started_at
        assert card.files == {
            path.relative_to(exported).as_posix(): sha256_of(path)
            for path in exported.rglob("*")
            if path.is_file() and path.name not in ("card.json", "README.md")
        }
        assert set(card.files) >= {"model.onnx", "head.onnx", "masks.npz", "network-1/model.safetensors"}

    def test_card_measures_what_onnx_differs_by(self, exported):
        onnx = ModelCard.model_validate_json((exported / "card.json").read_text()).onnx

        assert onnx is not None
        assert (onnx.images, onnx.of) == (64, "synthetic")  # no Label Studio, and no key to ask it with
        assert 0 < onnx.onnx_difference < 1e-5
        assert 0 < onnx.approximation_mean < onnx.approximation_largest < 0.5
        assert 0 <= onnx.same_class <= 64

    def test_program_of_the_readme_predicts(self, trained, exported, monkeypatch, tmp_path):
        text = (exported / "README.md").read_text()
        program = re.search(r"```python\n(.*?)```", text, re.DOTALL)
        assert program is not None
        (tmp_path / "program.py").write_text(program[1])
        for path in exported.iterdir():
            (tmp_path / path.name).symlink_to(path)
        image = trained.pool[3]
        shutil.copy(trained.images / image.uri, tmp_path / "image.png")
        monkeypatch.chdir(tmp_path)

        found = runpy.run_path("program.py")

        assert found["mean"][0] == pytest.approx(trained.outputs.probs[3].mean(axis=0), abs=1e-5)
        assert "Not a medical device" in text
        levels = np.asarray(draw_pool(3, (1, 1, 1), seed=1, side=96)[0][0], np.uint16)[:, :64]
        lying, layer = Image.Exif(), Image.fromarray(np.uint8(levels)).convert("RGBA")
        lying[274] = 6  # turned by 90 degrees
        layer.putalpha(Image.linear_gradient("L").resize(layer.size))
        for picture in (Image.fromarray(levels * 15), layer):  # 12 bits in 16, and transparency
            picture.save("image.png", exif=lying)
            expected = decode_image(Path("image.png").read_bytes(), SIDE, "it").pixels
            pixels = np.asarray(runpy.run_path("program.py")["pixels"], int)
            assert np.abs(pixels - expected).max() <= 2
            assert np.ptp(expected) > 100

    def test_needs_no_backbone_of_the_machine(self, exported):
        """The frozen backbone is in the first file, the second is a head for it."""
        first, second = load_networks(exported)

        assert first.network.backbone is second.network.backbone
        assert not first.frozen_backbone
        assert second.frozen_backbone

    def test_networks_with_backbones_of_their_own(self, trained, exported, score, tmp_path):
        first, second = load_networks(exported)
        shutil.copytree(exported, tmp_path / "own")
        with torch.no_grad():
            # Head 2 on another backbone, as after full fine-tuning.
            own = load_networks(exported)[0].network.backbone
            for parameter in own.parameters():
                parameter.mul_(1.02)
            second.network.backbone = own
        save_networks(tmp_path / "own", [first, second])

        found = score(tmp_path / "own").probs

        pixels = np.stack([np.asarray(Image.open(trained.images / image.uri)) for image in trained.pool])
        inputs = to_input(torch.from_numpy(pixels), own.normalisation)
        exact = [one.network.mc_probs(inputs, one.options.passes, one.seed) for one in (first, second)]
        assert found == pytest.approx(torch.cat(exact, dim=1).numpy(), abs=1e-5)
        assert not np.allclose(found[:, 4:], trained.outputs.probs[:, 4:], atol=1e-4)
        whole = exporting._Deterministic([first, second]).eval()
        passes = exporting._Passes(whole.heads, len(whole.backbones)).eval()
        with torch.inference_mode():
            _, features = whole(torch.from_numpy(pixels))
            drawn = passes(features, tuple(exporting.masks_of(one) for one in (first, second)))
        assert drawn.numpy() == pytest.approx(found, abs=1e-5)

    def test_a_network_that_onnx_gets_wrong_is_refused(self, exported):
        networks = load_networks(exported)
        with torch.no_grad():
            networks[0].network.head.output.bias[0] += 0.1

        with pytest.raises(RoundError, match=r"ONNX Runtime differs from PyTorch by 0\.0.*--no-onnx"):
            exporting.check_onnx(exported, networks, np.zeros((2, SIDE, SIDE), np.uint8), "synthetic")

    @pytest.mark.parametrize(
        ("broken", "message"),
        [
            (lambda path: shutil.rmtree(path / "network-2"), "network-2/model.safetensors is missing"),
            (lambda path: shutil.copytree(path / "network-2", path / "network-3"), "network-3/.* not the file that"),
            (lambda path: (path / "network-1" / "model.safetensors").write_bytes(b""), "network-1/.* not the file"),
            (lambda path: (path / "card.json").unlink(), "No such file.*: expected the whole folder"),
            (lambda path: (path / "card.json").write_text("[]"), "expected the whole folder"),
        ],
    )
    def test_a_folder_that_is_not_whole(self, exported, tmp_path, broken, message):
        whole = shutil.copytree(exported, tmp_path / "model")
        assert len(open_exported(whole)) == 2
        broken(whole)

        with pytest.raises(WeightsError, match=message):
            open_exported(whole)

    def test_the_folder_of_a_file_of_weights_stays_here(self, exported, tmp_path):
        networks = load_networks(exported)
        for one in networks:
            one.network.backbone.weights = "/home/meier/w.safetensors"
        named = [
            dataclasses.replace(one, options=one.options.model_copy(update={"weights": "/home/meier/w.safetensors"}))
            for one in networks
        ]

        save_networks(tmp_path, named)

        assert b"meier" not in b"".join(path.read_bytes() for path in tmp_path.rglob("*.safetensors"))
        assert load_networks(tmp_path)[1].options.weights == "w.safetensors"


class TestRoundToExport:
    @pytest.mark.parametrize("wanted", [None, "2", "r000002"])
    def test_by_number_and_the_newest_with_a_network(self, trained, wanted):
        assert round_to_export(trained.store, wanted).request.round_id == "r000002"

    @pytest.mark.parametrize(
        ("wanted", "message"),
        [("1", "its network is not stored.*with a network: r000002"), ("9", "there is no such round.*r000002")],
    )
    def test_others(self, trained, wanted, message):
        with pytest.raises(UnknownRound, match=f"--round {wanted}: {message}"):
            round_to_export(trained.store, wanted)

    def test_without_any_network(self, tmp_path):
        with pytest.raises(UnknownRound, match="no round of this project has a network"):
            round_to_export(ProjectStore(tmp_path), None)

    def test_never_into_a_folder_with_files(self, trained):
        done = trained.run("export", "--project", "7", "--out", str(trained.images), "--no-onnx")

        assert done.returncode == 1
        assert done.stderr == f"ml-backend: --out {trained.images} exists already: name a new folder, or delete it\n"

    def test_card_without_a_record_of_held_out_images(self, trained):
        report = trained.store.report("r000002")
        folder = trained.store.network("r000002")
        assert folder is not None
        (folder / "held-out.json").rename(folder / "moved")

        card = make_card(trained.store, report, load_networks(folder))

        (folder / "moved").rename(folder / "held-out.json")
        assert card.recall == dict.fromkeys(CLASSES)
        assert "not known" in readme(card)
        assert "onnxruntime" not in readme(card)


@pytest.fixture(scope="module")
def predicted(trained, exported, tmp_path_factory) -> tuple[CompletedProcess[str], Path]:
    """A table of the pool, two images a patient, and of a file that is none."""
    out = tmp_path_factory.mktemp("predicted")
    lines = [f"{trained.images / image.uri},p{int(image.id) // 2}" for image in trained.pool]
    (out / "no.png").write_bytes(b"<!doctype html><title>Log in</title>")
    (out / "images.csv").write_text("\n".join(["path,patient_id", *lines, "no.png,p9"]))
    words = (
        "--model",
        exported,
        "--images",
        out / "images.csv",
        "--out",
        out / "p.csv",
        "--patients",
        out / "q.csv",
    )
    return trained.run("predict", *map(str, words)), out


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


class TestPredict:
    def test_every_image_as_in_the_round(self, trained, predicted):
        done, out = predicted
        rows = rows_of(out / "p.csv")

        assert done.stdout == f"{len(trained.pool)} images in {out / 'p.csv'}, 0 without a patient\n"
        assert [Path(row["path"]).name for row in rows] == [image.uri for image in trained.pool]
        means = trained.outputs.probs.mean(axis=1)
        assert np.array([[float(row[f"p_{name}"]) for name in CLASSES] for row in rows]) == pytest.approx(
            means, abs=1e-6
        )
        assert [row["prediction"] for row in rows] == [CLASSES[best] for best in means.argmax(axis=1)]
        entropy = -(means * np.log(means)).sum(axis=1)
        assert [float(row["entropy"]) for row in rows] == pytest.approx(entropy, abs=1e-5)
        probs = trained.outputs.probs.astype(np.float64)
        epistemic = entropy + (probs * np.log(probs)).sum(axis=2).mean(axis=1)
        assert [float(row["mutual_information"]) for row in rows] == pytest.approx(epistemic, abs=1e-5)

    def test_a_patient_is_the_mean_of_the_passes_of_its_images(self, trained, predicted):
        _, out = predicted
        rows = rows_of(out / "q.csv")

        assert [(row["patient_id"], row["images"]) for row in rows] == [
            (f"p{number}", "2") for number in range(LABELLED // 2, IMAGES // 2)
        ]
        both = trained.outputs.probs[2:4].mean(axis=0)  # [passes, classes], of the second patient
        assert float(rows[1]["p_severe"]) == pytest.approx(both.mean(axis=0)[2], abs=1e-6)
        mean = both.mean(axis=0)
        epistemic = (both * np.log(both)).sum(axis=1).mean() - (mean * np.log(mean)).sum()
        assert float(rows[1]["mutual_information"]) == pytest.approx(epistemic, abs=1e-5)

    def test_an_unreadable_file_is_named(self, predicted):
        done, _ = predicted

        assert done.returncode == 1
        assert "not predicted: no.png: " in done.stderr
        assert "HTML page" in done.stderr

    def test_a_folder(self, trained, exported, tmp_path):
        """As the manual has it."""
        (tmp_path / "model").symlink_to(exported)
        shutil.copytree(trained.images, tmp_path / "studies")
        (tmp_path / "studies" / "dicom").mkdir()
        for name in "ab":
            (tmp_path / "studies" / "dicom" / name).write_bytes(file_of(radiograph(PatientID="P7")))
        report = radiograph(SOPClassUID=BasicTextSRStorage)
        del report.PixelData, report.Rows
        (tmp_path / "studies" / "report").write_bytes(file_of(report))

        done = trained.run(*PREDICT.words[1:], folder=tmp_path)

        assert done.stderr.startswith("skipped: report: ")
        assert (done.returncode, done.stderr.count("\n")) == (0, 1)
        assert done.stdout == f"{IMAGES + 2} images in predictions.csv, {IMAGES} without a patient\n"
        rows = rows_of(tmp_path / "predictions.csv")
        names = [*(f"{number:02d}.png" for number in range(IMAGES)), "dicom/a", "dicom/b"]
        assert [row["path"] for row in rows] == names
        assert [row["patient_id"] for row in rows] == [*[""] * IMAGES, "P7", "P7"]
        assert [(row["patient_id"], row["images"]) for row in rows_of(tmp_path / "patients.csv")] == [("P7", "2")]

    @pytest.mark.parametrize("words", [(), ("--images", "x", "--to-project", "9")])
    def test_what_to_predict_is_said_once(self, trained, words):
        done = trained.run("predict", "--model", "m", *words)

        assert (done.returncode, done.stderr) == (
            1,
            "ml-backend: give either --images or --to-project: what should be predicted?\n",
        )

    def test_a_folder_without_a_model(self, trained, tmp_path):
        done = trained.run("predict", "--model", str(tmp_path), "--images", str(trained.images))

        assert done.returncode == 1
        assert done.stderr.startswith(f"ml-backend: {tmp_path} cannot be read")

    @pytest.fixture
    def predict(self, exported, tmp_path) -> Callable[..., Predicted]:
        return partial(predict_files, exported, cache=tmp_path / "cache", device="cpu")

    def test_never_over_what_it_reads(self, predict, trained, tmp_path):
        """And a run that ends early leaves the tables of the last one."""
        table, out = tmp_path / "studies.csv", tmp_path / "p.csv"
        table.write_text(f"path\n{trained.images}/01.png\n")
        out.write_text("yesterday")
        for target, patients in ((table, None), (out, tmp_path / "x" / ".." / "p.csv"), (out, table)):
            with pytest.raises(SettingsError, match="must be different files"):
                predict(str(table), target, patients=patients)
        with pytest.raises(SettingsError, match="cannot be written: it is a folder"):
            predict(str(table), out, patients=trained.images)

        def stop(_: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            predict(str(table), out, progress=stop)
        assert (table.read_text()[:5], out.read_text()) == ("path\n", "yesterday")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "p.csv", "studies.csv"]

    def test_its_own_tables_are_no_images(self, predict, trained, tmp_path):
        studies = tmp_path / "studies"
        studies.mkdir()
        (studies / "=cmd|x.png").symlink_to("y.png")
        shutil.copy(trained.images / "01.png", studies / "y.png")
        for _ in range(2):
            found = predict(str(studies), studies / "p.csv", patients=studies / "q.csv")

            assert (found.images, found.unreadable) == (2, [])
        assert [row["path"] for row in rows_of(studies / "p.csv")] == ["'=cmd|x.png", "y.png"]


class _Unconnected(Studio):
    """A project without an ML backend, most of whose images are on a host that is down."""

    def answer(self, method, path, query, body):
        return [] if "/ml" in path else super().answer(method, path, query, body)


class TestPredictProject:
    def predict(self, trained: Trained, exported: Path, studio: Studio, hosts: str = "") -> Any:
        settings = Settings(
            data_dir=trained.data,
            device="cpu",
            label_studio_url=studio.url,
            label_studio_api_key=SecretStr("k"),
            image_hosts=hosts,
            basic_auth_user="u",
            basic_auth_pass=SecretStr("p"),
        )
        return predict_project(settings, exported, 9, "order")

    def test_one_with_an_ml_backend_is_left_alone(self, trained, exported):
        with Studio().serving() as studio:
            studio.add_project(9)
            before = dict(studio.rows[9])

            with pytest.raises(SettingsError, match="project 9 is connected to an ML backend"):
                self.predict(trained, exported, studio)

            assert (studio.rows[9], studio.predictions[9]) == (before, {})

    def test_a_dead_host_is_spared_and_label_studio_known_by_its_name(self, trained, exported):
        with _Unconnected().serving() as studio, socket.create_server(("127.0.0.1", 0)) as taken:
            studio.add_project(9)
            port = taken.getsockname()[1]
            taken.close()
            for number, task in studio.tasks[9].items():
                home = "http://away" if number < 5 else f"http://127.0.0.1:{port}"
                task["data"]["image"] = f"{home}/data/upload/{number}.png"

            published, unreadable = self.predict(trained, exported, studio, f"127.0.0.1:{port}")

        assert set(published.image_ids) == {"1", "2", "3", "4"}
        assert len(unreadable) == 56
        assert [reason for _, reason in unreadable if "was not asked for" in reason], unreadable


class MlflowServer(BaseHTTPRequestHandler):
    """Accepts a run of an experiment that it has."""

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        experiment = {"experiment_id": "1", "name": "e", "lifecycle_stage": "active", "artifact_location": "mlruns"}
        info = {"run_id": "a", "run_uuid": "a", "experiment_id": "1", "status": "RUNNING", "lifecycle_stage": "active"}
        content = json.dumps({"experiment": experiment, "run": {"info": info}, "run_info": info}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET  # noqa: N815 - a name of the standard library

    def log_message(self, *_: object) -> None:
        """Nothing."""


class TestTracking:
    """On MLflow's own store of files, which must be allowed; a real server was tried by hand."""

    @pytest.fixture
    def track(self, trained, tmp_path, monkeypatch) -> Callable[..., list[str]]:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "made"))
        (tmp_path / "made").mkdir()

        def track(
            address: str = f"file://{tmp_path}/runs",
            round_id: str = "r000002",
            change: Callable[[RoundReport], RoundReport] = lambda report: report,
            **options: Any,
        ) -> list[str]:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
            monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
            settings = Settings(data_dir=trained.data, device="cpu")
            with capture_logs() as lines:
                tracking.track_round(settings, trained.key, change(trained.store.report(round_id)), **options)
            assert "secret" not in str(lines)
            assert not list((tmp_path / "made").iterdir())
            return [line["event"] for line in lines]

        return track

    def test_a_round_is_a_run(self, trained, track, tmp_path):
        from mlflow import MlflowClient

        assert track() == ["round logged in MLflow"]
        assert track(round_id="r000001") == ["round logged in MLflow"]

        client = MlflowClient(f"file://{tmp_path}/runs")
        experiment = client.get_experiment_by_name("label-studio-project-7")
        start, run = sorted(client.search_runs([experiment.experiment_id]), key=lambda one: one.info.run_name)
        assert (start.info.run_name, run.info.run_name, run.info.status) == ("r000001", "r000002", "FINISHED")
        assert (run.data.params["passes"], run.data.params["classes"]) == ("7", "normal,moderate,severe")
        fit = trained.store.report("r000002").fit
        figures = run.data.metrics
        assert figures["validation_accuracy"] == pytest.approx(fit.validation_accuracy)
        assert figures["validation_low"] < figures["validation_accuracy"] < figures["validation_high"]
        assert (figures["labels_severe"], figures["validation_loss"]) == (7, pytest.approx(fit.validation_loss))
        assert run.data.tags["manifest"] == trained.store.manifest_hash("r000002")
        folder = Path(client.download_artifacts(run.info.run_id, "model"))
        assert json.loads((folder / "card.json").read_text())["round_id"] == "r000002"
        assert len(load_networks(folder)) == 2
        assert client.list_artifacts(start.info.run_id) == []
        assert {run.data.tags["mlflow.user"], run.data.tags["mlflow.source.name"]} == {"", "ml-backend"}

    def test_any_name_of_a_class_and_no_path(self, track, tmp_path):
        from mlflow import MlflowClient

        def change(report: RoundReport) -> RoundReport:
            options = {**report.request.options, "weights": "/home/meier/w.safetensors"}
            return report.model_copy(
                update={
                    "labels_per_class": {"Mild (grade 1)": 1, "Mild [grade 1]": 2, "../x" * 99: 3},
                    "request": report.request.model_copy(update={"options": options}),
                }
            )

        assert track(round_id="r000001", change=change) == ["round logged in MLflow"]

        client = MlflowClient(f"file://{tmp_path}/runs")
        [experiment] = [one for one in client.search_experiments() if one.name != "Default"]
        [run] = client.search_runs([experiment.experiment_id])
        assert run.data.params["weights"] == "w.safetensors"
        assert run.data.metrics["labels_Mild _grade 1_"] == 1
        assert run.data.metrics["labels_Mild _grade 1__"] == 2
        assert 3 in run.data.metrics.values()

    def test_nothing_is_printed(self, track, capfd):
        """MLflow would print the address of the server with its password."""
        with HTTPServer(("127.0.0.1", 0), MlflowServer) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            said = track(f"http://user:secret@127.0.0.1:{server.server_port}", "r000001")
            server.shutdown()

        assert said == ["round logged in MLflow"]
        assert "secret" not in "".join(capfd.readouterr())

    def test_a_server_that_refuses_is_one_line(self, track):
        assert track("http://user:secret@127.0.0.1:9", limit_s=60.0) == ["the round is not in MLflow"]

    def test_a_server_that_never_answers_is_not_waited_for(self, track):
        with socket.create_server(("127.0.0.1", 0)) as silent:
            began = time.monotonic()
            said = track(f"http://user:secret@127.0.0.1:{silent.getsockname()[1]}", limit_s=0.5)

            assert time.monotonic() - began < 30
        for left in [one for one in threading.enumerate() if one.name == "mlflow"]:
            left.join()

        assert said == ["the round is not in MLflow, or not as a whole"]

    def test_not_installed(self, track, monkeypatch):
        monkeypatch.setitem(sys.modules, "mlflow", None)

        assert track() == ["the round is not in MLflow"]
