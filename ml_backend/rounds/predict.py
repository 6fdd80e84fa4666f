"""Predicts images with an exported model: files into a table, or the tasks of a project into Label Studio."""

import csv
import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import structlog
import torch
from jaxtyping import Float

from ml_backend.acquisition.pointwise import bald, entropy
from ml_backend.acquisition.strategy import CatalogStrategy
from ml_backend.config import ProjectOptions, Settings
from ml_backend.errors import EmptyPool, PayloadError, SettingsError
from ml_backend.images.dicom import NotAnImage, is_dicom, open_dicom
from ml_backend.images.files import RefusedFile, SourceFile, walk
from ml_backend.images.quarantine import QuarantinedSource
from ml_backend.images.source import with_plugins
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.formats import parse_label_config, read_image
from ml_backend.label_studio.images import LabelStudioImages
from ml_backend.label_studio.publisher import SAMPLING, LabelStudioPublisher
from ml_backend.model.export import ExportedModel
from ml_backend.model.inference import SHARD_IMAGES
from ml_backend.rounds.export import open_exported
from ml_backend.rounds.interfaces import assume_current
from ml_backend.rounds.live import BYTES_PER_GB
from ml_backend.schemas import (
    ImageRef,
    ProjectKey,
    PublishedRanking,
    RoundReport,
    RoundRequest,
    harmless_cell,
    is_patient_key,
    patient_of,
)
from ml_backend.storage import Quarantine, RoundStore

log = structlog.get_logger(__name__)

Shape: TypeAlias = Literal["prelabels", "order"]
"""What readers of a project get."""
Probabilities: TypeAlias = Float[npt.NDArray[np.float32], "images passes classes"]


@dataclass(slots=True)
class Predicted:
    """What became of the files.

    Attributes:
        images: number of images in the table.
        unknown_patient: number of these without a patient.
        skipped: DICOM objects without a picture, such as reports: name and reason.
        unreadable: other files that are not in the table: name and reason.
    """

    images: int = 0
    unknown_patient: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)


class _Files:
    """Files of a walk as an ``ImageSource``: keyed by their content, so that a cache knows an image by any name.

    Attributes:
        by_id: image id -> file.
        patients: image id -> patient, of the files that were read.
        without_picture: ids of DICOM objects that hold none.
    """

    def __init__(self) -> None:
        self.by_id: dict[str, SourceFile] = {}
        self.patients: dict[str, str | None] = {}
        self.without_picture: set[str] = set()
        self._thread = threading.local()

    def fetch(self, image: ImageRef) -> bytes:
        file = self.by_id[image.id]
        last = getattr(self._thread, "last", None)
        if last is None or last[0] is not file:
            content = file.read()
            named = [value for name, value in file.fields.items() if is_patient_key(name)]
            if not named and is_dicom(content):
                named.append(self._dicom_patient(image.id, content))
            self.patients[image.id] = patient_of(named[0]) if named else None
            last = self._thread.last = (file, content)
        found: bytes = last[1]
        return found

    def _dicom_patient(self, image_id: str, content: bytes) -> str:
        try:
            return str(open_dicom(content, first_frame=True).get("PatientID") or "")
        except NotAnImage:
            self.without_picture.add(image_id)
            raise

    def cache_key(self, image: ImageRef) -> str:
        return hashlib.sha256(self.fetch(image)).hexdigest()


class _Table:
    """A CSV file of predictions, which replaces an older one when it is whole.

    Args:
        path: of the file.
        classes: of the model.
        names: of the columns before the probabilities.
    """

    def __init__(self, path: Path, classes: Sequence[str], names: Sequence[str], stack: ExitStack) -> None:
        self._classes, self.path = classes, path.resolve()
        self.part = self.path.with_name(f".{path.name}.part")
        try:
            if path.is_dir():
                raise IsADirectoryError("it is a folder")
            self.part.parent.mkdir(parents=True, exist_ok=True)
            stack.callback(self.part.unlink, missing_ok=True)
            self._file = stack.enter_context(self.part.open("w", newline="", encoding="utf-8"))
        except OSError as error:
            raise SettingsError(f"{path} cannot be written: {error.strerror or error}") from error
        self._rows = csv.writer(self._file)
        self._rows.writerow([*names, "prediction", *(f"p_{name}" for name in classes), "entropy", "mutual_information"])

    def write(self, rows: Sequence[Sequence[object]], probs: Probabilities) -> None:
        """Add rows: the first columns of each, and its passes."""
        means = probs.mean(axis=1, dtype=np.float64)
        tensor = torch.from_numpy(probs)
        figures = zip(rows, means, entropy(tensor).tolist(), bald(tensor).tolist(), strict=True)
        self._rows.writerows(
            [
                *map(harmless_cell, row),
                harmless_cell(self._classes[int(mean.argmax())]),
                *(f"{value:.6f}" for value in mean.tolist()),
                f"{total:.6f}",
                f"{epistemic:.6f}",
            ]
            for row, mean, total, epistemic in figures
        )

    def replace(self) -> None:
        """Put the table into the place of an older one."""
        self._file.close()
        self.part.replace(self.path)


@contextmanager
def _tables(source: str, out: Path, patients: Path | None, classes: Sequence[str]) -> Iterator[list[_Table]]:
    """The tables of images and of patients, which are put into their places where the block ends without an error."""
    named = [path.resolve() for path in (Path(source), out, patients) if path is not None]
    if len(set(named)) < len(named):
        raise SettingsError("--images, --out and --patients must be different files: the tables would replace the rest")
    with ExitStack() as stack:
        tables = [_Table(out, classes, ("path", "patient_id"), stack)]
        if patients is not None:
            tables.append(_Table(patients, classes, ("patient_id", "images"), stack))
        yield tables
        for one in tables:
            one.replace()


def predict_files(
    model: Path,
    source: str,
    out: Path,
    *,
    cache: Path,
    patients: Path | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    cache_gb: float = 20.0,
    progress: Callable[[int], None] = lambda _: None,
) -> Predicted:
    """Predict every image of a source and write one row for each, in the order of their names.

    Entropy is that of the mean over the passes, mutual information that of label and weights, both in nats. A patient's
    passes are the mean of those of the patient's images. Memory does not grow with the number of images, but with that
    of patients.

    Args:
        model: folder that ``export_round`` wrote.
        source: see ``images.files.walk``. A patient is that of the table's column ``patient_id`` or of the DICOM file.
            The tables of this call are left out.
        out: CSV file, replaced at the end where it exists.
        cache: folder of pixels and features; that of the installation holds what its rounds have computed.
        patients: CSV file with one row a patient; None for none.
        device: ``auto`` is the GPU if there is one.
        cache_gb: size in GB that the decoded images may take, and again the features.
        progress: called with the number of files done.

    Raises:
        WeightsError: see ``open_exported``.
        SettingsError: the source cannot be listed, a table cannot be written, or two of the three are one file.
        RoundError: the GPU's memory is too small.
    """
    files, done = _Files(), Predicted()
    network = ExportedModel(open_exported(model), files, cache, device, int(cache_gb * BYTES_PER_GB))
    sums: dict[str, tuple[npt.NDArray[np.float64], int]] = {}
    seen = 0
    with _tables(source, out, patients, network.classes) as tables:
        ours = {str(path) for one in tables for path in (one.path, one.part)}
        found = (one for one in walk(source) if isinstance(one, RefusedFile) or one.address not in ours)
        while chunk := list(islice(found, SHARD_IMAGES)):
            files.patients.clear()
            files.without_picture.clear()
            files.by_id = {str(number): one for number, one in enumerate(chunk) if isinstance(one, SourceFile)}
            images = [ImageRef(id=number, uri=one.name) for number, one in files.by_id.items()]
            outputs = network.outputs(images, partial(_from, progress, seen))
            seen += len(chunk)
            ids, probs = outputs.image_ids, outputs.probs
            tables[0].write([(files.by_id[one].name, files.patients.get(one) or "") for one in ids], probs)
            for image_id, passes in zip(ids, probs, strict=True):
                if (patient := files.patients.get(image_id)) is None:
                    done.unknown_patient += 1
                elif patients is not None:
                    total, count = sums.get(patient, (np.zeros(passes.shape), 0))
                    sums[patient] = (total + passes, count + 1)
            done.images += len(ids)
            reasons = {one.image_id: one.reason for one in outputs.exclusions}
            for number, one in enumerate(chunk):
                if isinstance(one, RefusedFile):
                    done.unreadable.append((one.name, one.reason))
                elif (reason := reasons.get(str(number))) is not None:
                    left_out = done.skipped if str(number) in files.without_picture else done.unreadable
                    left_out.append((one.name, reason))
            progress(seen)
        for patient, (total, count) in sums.items():
            tables[-1].write([(patient, count)], (total / count)[None].astype(np.float32))
    return done


def _from(progress: Callable[[int], None], before: int, done: int) -> None:
    progress(before + done)


def predict_project(
    settings: Settings,
    model: Path,
    project_id: int,
    shape: Shape,
    progress: Callable[[int], None] = lambda _: None,
) -> tuple[PublishedRanking, list[tuple[str, str]]]:
    """Predict the unlabelled tasks of a project, and let its readers see the result.

    It is published as a round's ranking is: a new model version is imported and switched to, and those of earlier calls
    are deleted once no reader can hold one of their tasks. Model versions of others are left alone.

    Args:
        settings: of the installation; the data folder notes which versions were written.
        model: folder that ``export_round`` wrote.
        project_id: of the project, which must have no ML backend.
        shape: ``prelabels`` selects the most probable class in the reader's form; ``order`` serves the images by the
            entropy of their prediction, highest first, without a class.
        progress: called with the number of images done.

    Returns:
        What is served; and tasks that could not be predicted: id and reason.

    Raises:
        SettingsError: the project has an ML backend, or does not ask for the model's classes.
        EmptyPool: no task without a label could be predicted.
        WeightsError, LabelStudioError, RoundError: see ``predict_files`` and ``LabelStudioPublisher.publish``.
    """
    installation = RoundStore(settings.data_dir)
    networks = open_exported(model)
    # One Label Studio for all projects of an installation.
    hostname = settings.trusted_hostname(next((one.hostname for one in installation.connections()), None))
    with LabelStudioClient.from_settings(settings, hostname) as client:
        row = client.project(project_id)
        key = ProjectKey(id=project_id, created=int(datetime.fromisoformat(str(row["created_at"])).timestamp()))
        if installation.project(key).connection() is not None or client.backends(project_id):
            raise SettingsError(
                f"project {project_id} is connected to an ML backend, which writes its predictions: give another "
                "project"
            )
        config = parse_label_config(str(row["label_config"]))
        if shape == "prelabels" and (unknown := [one for one in networks[0].classes if one not in config.classes]):
            raise SettingsError(
                f"project {project_id} asks for {', '.join(config.classes)}, and the model also predicts "
                f"{', '.join(unknown)}: give those choices the same names, or write an order (--as order)"
            )
        images, unreadable = [], []
        for task in client.unlabelled_tasks(project_id):
            try:
                images.append(read_image(task, config))
            except PayloadError as error:
                unreadable.append((str(task.get("id")), str(error)))
        store = installation.predictions(key)
        with closing(LabelStudioImages(client, hostname, hosts=settings.allowed_image_hosts)) as source:
            network = ExportedModel(
                networks,
                # Spares a dead host; the list is of this call alone.
                QuarantinedSource(with_plugins(source), Quarantine(store.folder)),
                installation.cache,
                settings.device,
                int(settings.cache_gb * BYTES_PER_GB),
            )
            outputs = network.outputs(images, progress)
        unreadable += [(one.image_id, one.reason) for one in outputs.exclusions]
        if not outputs.image_ids:
            raise EmptyPool(f"project {project_id} has no task without a label whose image could be read")
        options = ProjectOptions(reserve="all", prelabel=shape == "prelabels", reread_share=0.0)
        ranking = CatalogStrategy("entropy").rank(outputs, len(outputs.image_ids), networks[0].options.seed)
        report = RoundReport(
            request=RoundRequest(
                project=key,
                round_id="exported-model",
                reason="forced",
                classes=networks[0].classes,
                strategy="entropy",
                batch_size=len(outputs.image_ids),
                min_labels_per_class=2,
                validation_share=0.2,
                seed=networks[0].options.seed,
            ),
            labels_per_class={},
            fit=None,
            ranking=ranking,
            seconds={},
            started_at=datetime.now(UTC),
        )
        # Off, Label Studio would neither show a class nor keep the version.
        client.patch_project(
            project_id, {"show_collab_predictions": True, **({"sampling": SAMPLING} if shape == "order" else {})}
        )
        # No reconciler goes on with the deletion of replaced versions.
        publisher = LabelStudioPublisher(client, project_id, config, options, store, deleting_s=600.0)
        published = publisher.publish(report, assume_current)
        if left := [one.version for one in store.imported_versions() if one.deleting]:
            log.warning("old predictions are left, and the next call goes on deleting them", model_versions=left)
    return published, unreadable
