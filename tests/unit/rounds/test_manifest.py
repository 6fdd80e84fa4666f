"""What a manifest holds, against hashes taken by other means."""

import hashlib
from pathlib import Path

import torch
import torchvision

import ml_backend
from ml_backend.config import ProjectOptions
from ml_backend.rounds.replay import code_digest, listing_digest, sealed, versions
from ml_backend.schemas import FitReport
from ml_backend.storage import ProjectStore
from ml_backend.storage.rounds import RoundInputs, file_faults
from tests.fakes import make_image, make_report

FIT = FitReport(
    epochs=1, best_epoch=1, class_weights={}, train_images=1, validation_images=1,
    validation_loss=1.0, validation_accuracy=0.5, validation_auroc=None,
)  # fmt: skip


def seal(tmp_path: Path, *, fit: FitReport | None = None, ranked_by: str = "random", **options: object):
    """The manifest of a folder with one file, of a round with these options."""
    folder = tmp_path / "round"
    folder.mkdir(exist_ok=True)
    (folder / "report.json").write_bytes(b"{}")
    chosen = ProjectOptions.model_validate({"weights": "none", **options}).model_dump(mode="json")
    report = make_report()
    request = report.request.model_copy(update={"options": chosen})
    ranking = report.ranking.model_copy(update={"strategy": ranked_by})
    report = report.model_copy(update={"fit": fit, "request": request, "ranking": ranking})
    inputs = RoundInputs(labels=(), pool=(make_image(1), make_image(2)))
    return sealed(ProjectStore(tmp_path / "project"), report, inputs, folder, "cpu"), folder


class TestSealed:
    def test_files_code_and_surroundings(self, tmp_path):
        manifest, _ = seal(tmp_path)

        assert manifest.files == {"report.json": hashlib.sha256(b"{}").hexdigest()}
        assert manifest.code == code_digest()
        assert manifest.versions["torch"] == torch.__version__
        assert manifest.versions["torchvision"] == torchvision.__version__
        assert manifest.versions == versions()
        assert "threads" in manifest.machine
        assert (manifest.previous, manifest.previous_round) == (None, None)

    def test_the_file_of_the_weights_where_a_network_ranked(self, tmp_path):
        weights = tmp_path / "own.safetensors"
        weights.write_bytes(b"tensors")

        manifest, _ = seal(tmp_path, fit=FIT, weights=str(weights), backbone="resnet18")

        assert manifest.weights == hashlib.sha256(b"tensors").hexdigest()
        assert manifest.weights_from == f"resnet18 {weights}"

    def test_a_random_order_asks_no_network(self, tmp_path):
        weights = tmp_path / "own.safetensors"
        weights.write_bytes(b"tensors")

        manifest, _ = seal(tmp_path, weights=str(weights))

        assert (manifest.weights, manifest.weights_from) == ("", "no network")

    def test_a_typical_order_before_the_first_training_asks_a_backbone(self, tmp_path):
        weights = tmp_path / "own.safetensors"
        weights.write_bytes(b"tensors")

        manifest, _ = seal(tmp_path, ranked_by="typiclust", weights=str(weights), backbone="resnet18")

        assert manifest.weights == hashlib.sha256(b"tensors").hexdigest()


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
