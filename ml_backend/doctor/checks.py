"""One project in one installation: whatever several checks look at, asked for once.

How much memory a training step takes: counted on a network without numbers, so that it needs no GPU and no time.
What a check is, and what comes of it.
Checks of this machine: the data folder and its disk, the backbone's weights, the GPU.
Checks of what carries rounds to a worker, and of how they went.
Checks of Label Studio, of our rights there, and of what the project asks its readers.
Checks of what connects a project with the backend, and whether its events get through.
Checks of the images and their labels.
Checks of what readers are served: the published ranking, whole and in its order.
"""

import re
import shutil
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, TypeAlias
from urllib.parse import unquote, urlsplit

import httpx
import structlog
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ml_backend.analytics.history import ground_truths, known_network
from ml_backend.analytics.standing import MENDABLE, Standing, project_standing
from ml_backend.config import ProjectOptions, Settings, checked_address
from ml_backend.errors import (
    BackendError,
    ImageError,
    ImageErrorKind,
    PayloadError,
    RequestRefused,
    SettingsError,
    StorageError,
    UnknownProject,
    WeightsError,
)
from ml_backend.images.decode import decode
from ml_backend.label_studio.client import BACKEND, FAILURES, TESTED, LabelStudioClient, Route, label_studio_version
from ml_backend.label_studio.connect import (
    CONNECTED,
    ONE_CONNECTION,
    OUR_401,
    PRIVATE_ADDRESS,
    authorization,
    find_webhook,
    hint,
    other_connections,
    wanted_webhook,
)
from ml_backend.label_studio.formats import LabelConfig, parse_label_config, read_image, shown, training_classes
from ml_backend.label_studio.images import LabelStudioImages
from ml_backend.label_studio.publisher import (
    ONE_INSTALLATION,
    Aspect,
    Serving,
    ServingProblem,
    is_lost,
    read_serving,
    serving_problems,
)
from ml_backend.label_studio.sync import Mirror, TaskImages, read_project
from ml_backend.model.backbones import last_layer
from ml_backend.scheduling import QueueStatus, RoundQueue
from ml_backend.schemas import Connection, FrozenModel, ImageRef, ProjectKey
from ml_backend.storage import ProjectStore, RoundStore, write_atomically
from ml_backend.storage.project_state import ReadingStore
from ml_backend.storage.quarantine import Quarantine

Json = dict[str, Any]
READ_WHOLE = 1000  # tasks that are read without a mirror: some 6 s


class Case:
    """A project to look at. Every property may raise the errors of what it asks; none is kept of one that did.

    Args:
        project_id: of Label Studio.
        url: where Label Studio reaches the backend.
        load: reads the settings of the installation.
        http: httpx's own transport, for the requests to Label Studio and to the backend; for tests.
    """

    def __init__(
        self,
        project_id: int,
        url: str,
        load: Callable[[], Settings] = Settings.load,
        http: httpx.BaseTransport | None = None,
    ) -> None:
        self.project_id = project_id
        self.url = url.rstrip("/")
        self.http = http
        self._load = load

    def close(self) -> None:
        """Hang up."""
        if (client := self.__dict__.get("client")) is not None:
            client.close()
        if (queue := self.__dict__.get("queue")) is not None:
            queue.redis.close()

    def secrets(self) -> list[str]:
        """What must never be printed, as far as the settings can be read."""
        settings: Settings | None = self.__dict__.get("settings")
        if settings is None:
            return []
        key, password = settings.label_studio_api_key, settings.basic_auth_pass
        found = [secret.get_secret_value() for secret in (key, password) if secret is not None]
        if password is not None:
            found.append(b64encode(f"{settings.basic_auth_user}:{found[-1]}".encode()).decode())
        try:
            quoted = urlsplit(settings.redis_url).password or ""
        except ValueError:  # no address; what refuses it does not repeat it
            return found
        return [*found, quoted, unquote(quoted)]

    @cached_property
    def settings(self) -> Settings:
        return self._load()

    # Label Studio

    @cached_property
    def studio_url(self) -> str | None:
        """Where Label Studio is; None where nobody has said so yet."""
        url = self.settings.label_studio_url or self._hostname
        return checked_address(url) if url else None

    @property
    def _hostname(self) -> str | None:
        known = self.stored_connection
        return self.settings.trusted_hostname(known.hostname if known else None)

    @cached_property
    def client(self) -> LabelStudioClient:
        settings = self.settings
        if settings.label_studio_api_key is None or self.studio_url is None:
            return LabelStudioClient.from_settings(settings, self.studio_url)  # refuses in words
        key = settings.label_studio_api_key.get_secret_value()
        return LabelStudioClient(self.studio_url, key, timeout_s=settings.timeout_s, retries=2, transport=self.http)

    @cached_property
    def project(self) -> Json:
        return self.client.project(self.project_id)

    @cached_property
    def config(self) -> LabelConfig:
        return parse_label_config(str(self.project["label_config"]))

    @cached_property
    def options(self) -> ProjectOptions:
        """The owner's, of the connection that Label Studio holds; else of the one that the backend remembers."""
        if self.backend is not None:
            params = self.backend.get("extra_params")
        else:
            params = self.stored_connection.extra_params if self.stored_connection else None
        return ProjectOptions.resolve(params or {}, self.config.attributes)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        return training_classes(self.config, self.options)

    # What connects it with the backend

    @cached_property
    def backends(self) -> list[Json]:
        """The project's backends; Label Studio asks each of them how it is first."""
        return self.client.backends(self.project_id)

    @cached_property
    def backend(self) -> Json | None:
        """The project's connection to this backend."""
        return next((row for row in self.backends if str(row["url"]).rstrip("/") == self.url), None)

    @cached_property
    def webhook(self) -> Json | None:
        return find_webhook(self.client, self.project_id, self.url)

    def ask_backend(self, path: str) -> httpx.Response:
        """Ask the backend itself, with the credentials of the settings.

        Raises:
            Unreachable: it does not answer.
            SettingsError: a network variable of the environment is wrong.
        """
        user, password = self.settings.basic_auth_user, self.settings.basic_auth_pass
        auth = None if user is None or password is None else (user, password.get_secret_value())
        # No proxy: from the backend's own machine it mostly leads nowhere.
        route = Route(self.url, BACKEND, self.http, direct=True)
        try:
            with route.client() as http:
                answer = http.get(f"{self.url}{path}", auth=auth, timeout=10.0)
        except FAILURES as error:
            raise route.unreachable(error, f"no answer from {self.url}") from error
        route.check_answer(answer)
        return answer

    # The installation

    @cached_property
    def queue(self) -> RoundQueue:
        return RoundQueue.from_settings(self.settings)

    @cached_property
    def store(self) -> RoundStore:
        return RoundStore(self.settings.data_dir)

    @cached_property
    def stored_connection(self) -> Connection | None:
        """What the backend has been told of the project; None where that stands in no file of the data folder."""
        try:
            return self.store.connection(self.project_id)
        except UnknownProject:
            return None

    @cached_property
    def key(self) -> ProjectKey:
        """The project, told apart from an earlier one under the same id."""
        try:
            created = datetime.fromisoformat(str(self.project["created_at"]))
        except (KeyError, ValueError) as error:
            raise PayloadError(f"project {self.project_id} does not say when it was created: {error!r}") from None
        return ProjectKey(id=self.project_id, created=int(created.timestamp()))

    @cached_property
    def kept(self) -> ProjectStore:
        """The project's rounds."""
        return self.store.project(self.key)

    # What readers are served

    @cached_property
    def serving(self) -> Serving:
        """What Label Studio serves, as the backend's reconciler reads it too."""
        try:
            published = self.kept.published()
        except StorageError:  # the check of the files names it
            published = None
        # Anew: a round may have been published since the project was first asked for.
        row = self.client.project(self.project_id)
        there = self.client.existing(self.project_id, map(int, published.image_ids)) if published else set()
        imported, user = self.kept.imported_versions, self.settings.basic_auth_user
        return read_serving(self.client, row, there, published, imported, user=user)

    @cached_property
    def serving_problems(self) -> list[ServingProblem]:
        try:
            waits = self.standing is None or self.standing.waits
        except BackendError:  # a check of its own tells it
            waits = True
        return serving_problems(self.serving, self.options, str((self.backend or {}).get("title")), waits=waits)

    @cached_property
    def mirror(self) -> Mirror | None:
        """The project's tasks as they are now; None where the backend has not read them yet and they are many."""
        kept = ReadingStore(self.kept.folder).mirror(Mirror)
        if kept is None and int(self.project.get("task_number") or 0) > READ_WHOLE:
            return None
        return read_project(self.client, self.project_id, kept).mirror

    @cached_property
    def images(self) -> TaskImages | None:
        """Of the tasks, as the backend tells them apart; None likewise."""
        if self.mirror is None:
            return None
        return TaskImages.of(self.mirror, self.config, ReadingStore(self.kept.folder).digests())

    @cached_property
    def standing(self) -> Standing | None:
        """How far the labelling is, as the pages tell it; None likewise."""
        if self.mirror is None:
            return None
        network = known_network([*map(self.kept.summary, self.kept.round_ids())])
        barred = {one.image_id: one.reason for one in Quarantine(self.kept.folder).listed()}
        return project_standing(
            self.mirror, self.config, self.options, self.images, quarantined=barred, network=network
        )


PER_WEIGHT = 20  # bytes: weight, gradient, Adam's two moments, and the best epoch's copy, all in float32
BESIDE = 2**30  # bytes: CUDA itself and cuDNN's working memory; a round number


@dataclass(frozen=True, slots=True)
class StepMemory:
    """What training a whole network takes.

    Attributes:
        fixed: bytes, however many images.
        per_image: bytes for every image of a step.
    """

    fixed: int
    per_image: int

    def of(self, images: int) -> int:
        """Bytes of a step of so many images."""
        return self.fixed + images * self.per_image


def step_memory(backbone: str, side: int, *, half: bool) -> StepMemory:
    """An estimate: what autograd keeps of a forward pass, and the weights with all that Adam needs.

    Args:
        backbone: torchvision's name of the network.
        side: of the square input in pixels.
        half: the products are bfloat16, so that most of what is kept takes half of the room.

    Raises:
        SettingsError: no such backbone.
    """
    from torchvision import models  # noqa: PLC0415 - it takes a second

    last_layer(backbone)
    with torch.device("meta"):
        network = models.get_model(backbone, weights=None)
        images = torch.empty(2, 3, side, side)
    weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}  # noqa: SLF001
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        # By storage, since views share one; held on to, so that no other takes its place.
        storage = tensor.untyped_storage()._cdata  # noqa: SLF001
        if storage not in weights:
            kept[storage] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        network.train()(images)
    # Running means and other per-channel numbers are among them; they are small.
    per_image = sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) // len(images)
    fixed = PER_WEIGHT * sum(parameter.numel() for parameter in network.parameters())
    return StepMemory(fixed + BESIDE, per_image // 2 if half else per_image)


Verdict: TypeAlias = Literal["ok", "FAIL", "skip"]


class Outcome(FrozenModel):
    """What a check has seen, and what helps where that is a failure."""

    verdict: Verdict
    seen: str
    remedy: str = ""


class Finding(Outcome):
    """The outcome of the check of that name."""

    name: str


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must be right.

    Attributes:
        name: as it is printed.
        look: looks at it. An error of ours that it raises is a failure, with ``remedy`` as what helps.
        needs: names of the checks without which it makes no sense.
        remedy: see ``look``.
    """

    name: str
    look: Callable[[Case], Outcome]
    needs: tuple[str, ...] = ()
    remedy: str = ""


def fine(seen: str) -> Outcome:
    """It is as it must be."""
    return Outcome(verdict="ok", seen=seen)


def failed(seen: str, remedy: str) -> Outcome:
    """It is not, and this helps."""
    return Outcome(verdict="FAIL", seen=seen, remedy=remedy)


def skipped(why: str) -> Outcome:
    """There is nothing to look at yet."""
    return Outcome(verdict="skip", seen=why)


GB = 10**9
NETWORK = 110_000_000  # bytes of a ResNet50 with its head; what is larger is rare
PER_PROBABILITY = 4  # bytes, before compression
PER_FEATURES = 2048 * 4  # bytes of an image's features, of a ResNet50
HASHES = 4096  # bytes that a cache takes for the name of an image


def _data_folder(case: Case) -> Outcome:
    folder = case.settings.data_dir
    if not folder.is_dir():
        return failed(
            f"AL_DATA_DIR={folder} is no folder here",
            "set AL_DATA_DIR as it is set for `ml-backend serve`; in a new installation, make the folder",
        )
    probe = folder / ".doctor"
    try:
        write_atomically(probe, b"written by ml-backend doctor, which removes it at once")
        probe.unlink()
    except OSError as error:
        return failed(
            f"AL_DATA_DIR={folder} cannot be written: {error.strerror or error}",
            "make room, or let the user that runs `ml-backend` write there",
        )
    return fine(f"{folder.absolute()} can be written")


def _space(case: Case) -> Outcome:
    """A round must be able to keep its passes and its networks; its caches go on without a disk."""
    options, images = case.options, int(case.project.get("task_number") or 0)
    passes = images * options.passes * len(case.classes) * PER_PROBABILITY
    needed = passes + options.committee * NETWORK
    limit = case.settings.cache_gb * GB
    caches = min(images * (options.image_side**2 + HASHES), limit) + min(images * PER_FEATURES, limit)
    free = shutil.disk_usage(case.settings.data_dir).free
    told = f"{free / GB:.1f} GB free; a round of {images:,} images keeps up to {needed / GB:.1f} GB"
    if free < needed:
        return failed(told, "make room, or let AL_DATA_DIR name a folder on a larger disk")
    if free < needed + caches:
        told += f", and its caches want {caches / GB:.1f} GB: without room for them rounds are slower"
    return fine(told)


def _weights(case: Case) -> Outcome:
    from ml_backend.model.backbones import (  # noqa: PLC0415
        last_layer,
        load_backbone,
        weights_file,
    )

    options = case.options
    if options.weights == "none":
        last_layer(options.backbone)  # refuses a network that is not known
        return fine(f"none for {options.backbone}, as the options have it: it is untrained")
    path = weights_file(options.backbone, options.weights)
    if path is None:
        if options.weights == "imagenet":
            what = f"ImageNet's weights for {options.backbone}"
            way = f"let the worker fetch them at its first round; without internet put the file into {_hub()}"
        else:
            what, way = f"the file {options.weights}", "put it there"
        return failed(
            f"{what}: not on this machine",
            f"{way}; or set the option weights to a file of yours, or to none for an untrained network",
        )
    try:
        load_backbone(options.backbone, options.weights)
    except WeightsError as error:
        return failed(str(error), "take another file, or name the backbone that these weights are of")
    return fine(f"of {options.backbone}, from {path}")


def _hub() -> Path:
    """Where PyTorch keeps what it has downloaded."""
    import torch  # noqa: PLC0415

    return Path(torch.hub.get_dir()) / "checkpoints"


def _gpu(case: Case) -> Outcome:
    if case.settings.device == "cpu":
        return fine("not used, as AL_DEVICE=cpu has it: heads are trained on the CPU")
    import torch  # noqa: PLC0415 - it takes seconds

    from ml_backend.doctor.checks import step_memory  # noqa: PLC0415
    from ml_backend.model.hardware import Precision  # noqa: PLC0415

    options = case.options
    if not torch.cuda.is_available():
        if case.settings.device == "cuda":
            return failed("AL_DEVICE=cuda, and PyTorch finds no usable GPU", "mend the driver, or set AL_DEVICE=auto")
        if options.finetune == "full":
            return fine("none: the whole network is trained on the CPU, as finetune=full has it, which takes hours")
        return fine("none that PyTorch can use: heads are trained on the CPU")
    device = torch.device("cuda")
    free, total = torch.cuda.mem_get_info(device)
    there = f"{torch.cuda.get_device_name(device)}, {total / GB:.1f} GB, {free / GB:.1f} of them free now"
    if options.finetune == "head":
        return fine(f"{there}; only heads are trained, which takes little")
    precision = Precision.from_options(device, options.precision, channels_last=options.channels_last)
    step = step_memory(options.backbone, options.image_side, half=precision.dtype == torch.bfloat16)
    return fits(there, total, step.of(options.train_batch), step.of(2), options.train_batch)


def fits(there: str, total: int, whole: int, least: int, batch: int) -> Outcome:
    """What the estimates mean; a batch that is too large for a GPU is halved by itself, down to 2 images.

    Args:
        there: the GPU, in words.
        total: bytes of its memory.
        whole: bytes that a step of the whole batch is estimated to take.
        least: bytes of a step of 2 images.
        batch: ``train_batch``.
    """
    if least > total:
        return failed(
            f"{there}; even 2 images a step take about {least / GB:.1f} GB",
            "halve image_side, or set finetune=head",
        )
    told = f"{there}; train_batch={batch} takes about {whole / GB:.1f} GB"
    return fine(told if whole <= total else f"{told}: it will be halved until it fits")


MACHINE_CHECKS = (
    Check("data folder", _data_folder, needs=("settings",)),
    Check("space", _space, needs=("data folder", "classes")),
    Check(
        "weights",
        _weights,
        needs=("options",),
        remedy="set the option `backbone` to one of the networks that are named",
    ),
    Check("GPU", _gpu, needs=("options",), remedy="set the options `backbone` and `precision` to what this GPU can do"),
)


def _redis(case: Case) -> Outcome:
    case.queue.ping()
    return fine(case.queue.address)


def _worker(case: Case) -> Outcome:
    alive = case.queue.workers()
    if not alive:
        return failed(
            f"nobody waits for rounds at {case.queue.address}",
            "start `ml-backend work` with the same AL_REDIS_URL and AL_DATA_DIR; what waits is run then",
        )
    return fine(f"{alive} alive")


def _rounds(case: Case) -> Outcome:
    status = case.queue.status(case.key)
    # Where every image is labelled, or there is none yet, a round that ranked nothing is no failure of the round.
    if (error := status.last_error) is not None and not (status.ran_out and _nothing_to_mend(case, status)):
        at = datetime.fromtimestamp(error.at, UTC)
        again = datetime.fromtimestamp(status.next_attempt, UTC) if status.next_attempt else None
        tried = f"; it is tried again by itself at {again:%H:%M} UTC" if again else ""
        return failed(
            f"the last one failed at {at:%Y-%m-%d %H:%M} UTC: {error.kind}: {error.message}",
            f"mend what it names, then press Start Training in the backend's menu{tried}",
        )
    running = f"runs: {status.running}" if status.running else "none runs"
    if status.progress is not None:
        running += f" ({status.progress.stage}, {status.progress.done} of {status.progress.total})"
    waiting = f"waits: {status.waiting}" if status.waiting else "none waits"
    to_next = f"; {status.changes} of {status.threshold} labels to the next" if status.threshold else ""
    if error is not None:
        to_next += f"; the last one found no image to rank: {error.message}"
    return fine(f"{running}, {waiting}{to_next}; {status.rounds_finished} done, {status.rounds_failed} failed")


def _nothing_to_mend(case: Case, status: QueueStatus) -> bool:
    try:
        standing = case.standing
    except BackendError:  # a check of its own tells it
        standing = None
    return not status.failing if standing is None else standing.verdict != "unusable"


WORKER_CHECKS = (
    Check(
        "Redis",
        _redis,
        needs=("settings",),
        remedy="start redis-server or valkey-server, or set AL_REDIS_URL to the one that the backend uses",
    ),
    Check("worker", _worker, needs=("Redis",)),
    Check("rounds", _rounds, needs=("Redis", "project")),
)

# What publishing and reading need, as Label Studio names its rights.
RIGHTS = ("projects.view", "projects.change", "tasks.view", "predictions.any")
NOT_FOUND = 404


def _settings(case: Case) -> Outcome:
    read = case.settings
    guard = "callers need a password" if read.basic_auth_user else "callers need no password, so anybody may call"
    return fine(f"AL_* variables read; {guard}")


def _studio(case: Case) -> Outcome:
    if case.studio_url is None:
        return failed(
            "nobody has said where Label Studio is", "set AL_LABEL_STUDIO_URL, for example http://127.0.0.1:8080"
        )
    release = label_studio_version(case.studio_url, case.http)
    tested = "" if release == TESTED else f"; tested is {TESTED}, others mostly work"
    return fine(f"{release} at {case.studio_url}{tested}")


def _api_key(case: Case) -> Outcome:
    who = case.client.whoami()
    held = who.get("permissions")
    lacking = [right for right in RIGHTS if right not in held] if isinstance(held, list) else []
    kind = f"{case.client.transport.key_kind} of {who.get('email')}"
    if lacking:
        return failed(f"{kind}, who lacks {', '.join(lacking)}", "take the key of a user who may change projects")
    return fine(kind)


def _project(case: Case) -> Outcome:
    try:
        row = case.project
    except RequestRefused as error:
        if error.status != NOT_FOUND:
            raise
        return failed(
            f"Label Studio shows this user no project {case.project_id}",
            "is --project right? Its number stands in the address of its page, .../projects/N/; and the key must be "
            "of a user of the project",
        )
    tasks = row.get("task_number") or 0
    if not tasks:
        return fine(f"{row.get('title')!r} holds no images yet: import images in Label Studio to begin")
    return fine(f"{row.get('title')!r}: {tasks:,} images, {row.get('total_annotations_number') or 0:,} annotations")


def _label_config(case: Case) -> Outcome:
    config = case.config
    where = f"Choices {config.from_name!r} about Image {config.to_name!r}, in ${config.image_key} of a task"
    return fine("; ".join([where, *config.beside]))


def _options(case: Case) -> Outcome:
    chosen = case.options
    defaults = ProjectOptions.resolve(environ={})
    differing = {
        name: getattr(chosen, name)
        for name in ProjectOptions.model_fields
        if getattr(chosen, name) != getattr(defaults, name)
    }
    return fine(", ".join(f"{name}={value}" for name, value in differing.items()) or "all as they are by default")


def _classes(case: Case) -> Outcome:
    try:
        learned = case.classes
    except SettingsError as error:
        return failed(str(error), "give the Choices tag at least two classes, and name the option's choice among them")
    left_out = [shown(choice, case.config) for choice in case.config.classes if choice not in learned]
    beside = f"; no class: {', '.join(left_out)}" if left_out else ""
    return fine(f"least to most severe: {' < '.join(shown(choice, case.config) for choice in learned)}{beside}")


STUDIO_CHECKS = (
    Check("settings", _settings, remedy="mend the variables that are named, and run this again"),
    Check(
        "Label Studio",
        _studio,
        needs=("settings",),
        remedy="start Label Studio, or set AL_LABEL_STUDIO_URL to the address where it answers itself",
    ),
    Check(
        "API key",
        _api_key,
        needs=("Label Studio",),
        remedy="make a personal access token (Account & Settings in Label Studio) and set AL_LABEL_STUDIO_API_KEY",
    ),
    Check("project", _project, needs=("API key",), remedy="try again when Label Studio answers"),
    Check(
        "label config",
        _label_config,
        needs=("project",),
        remedy="change it in the project's settings under Labeling Interface; label_studio_config/ holds two examples",
    ),
    Check(
        "options",
        _options,
        needs=("label config",),
        remedy="mend it where it says that it comes from; `ml-backend connect --option` replaces all extra_params",
    ),
    Check("classes", _classes, needs=("options",)),
)

ARRIVES_WITHIN_S = 5.0
POLL_S = 0.1
COUNTER = "al_webhooks_total"
UPDATES = re.compile(rf'^{COUNTER}\{{[^}}]*action="PROJECT_UPDATED"[^}}]*\}} (\S+)$', re.MULTILINE)
UNAUTHORIZED = 401
FORBIDDEN = 403


def _private_addresses(case: Case) -> Outcome:
    """Label Studio judges an address before all else: of requests that can make nothing, it refuses it or the rest."""
    asked = {
        "backends": ("/api/ml", {"url": case.url}),  # without the project that it must name
        "webhooks": ("/api/webhooks/", {"url": f"{case.url}/webhook", "project": case.project_id, "is_active": "?"}),
    }
    blocked = []
    for what, (path, body) in asked.items():
        try:
            case.client.transport.send("POST", path, body=body)
        except RequestRefused as error:
            if error.status == FORBIDDEN:
                blocked.append(what)
                said = str(error)
    if blocked:
        return failed(f"Label Studio allows no {' and no '.join(blocked)} at {case.url}: {said}", PRIVATE_ADDRESS)
    return fine(f"Label Studio may call {case.url}")


def _backend_answers(case: Case) -> Outcome:
    answer = case.ask_backend("/metrics")
    if answer.status_code == UNAUTHORIZED:
        return failed(f"{case.url} refuses our credentials", OUR_401)
    if answer.status_code != httpx.codes.OK or COUNTER not in answer.text:
        return failed(
            f"what answers at {case.url} is not this backend ({answer.status_code} to GET /metrics)",
            "give the backend's address with --url",
        )
    return fine(f"at {case.url}, with the credentials of these settings")


def _backend_connected(case: Case) -> Outcome:
    row = case.backend
    again = f"run `ml-backend connect --project {case.project_id} --url {case.url}`"
    if row is None:
        others = [str(other["url"]) for other in case.backends]
        beside = f"; it has one at {', '.join(others)}" if others else ""
        return failed(f"the project has no backend at {case.url}{beside}", again)
    if row["state"] != CONNECTED:
        problem = str(row.get("error_message") or row.get("readable_state") or row["state"])
        return failed(f"Label Studio cannot work with it: {problem}", hint(problem) or f"mend that, and {again}")
    ours = case.settings.basic_auth_user
    theirs = row.get("basic_auth_user") or None
    if ours != theirs:
        return failed(f"Label Studio calls as user {theirs!r}, and these settings have {ours!r}", again)
    return fine(f"{row.get('title')!r}, as {f'user {ours!r}' if ours else 'nobody in particular'}")


def _webhook(case: Case) -> Outcome:
    row = case.webhook
    if row is None:
        return failed(
            f"the project has no webhook to {case.url}/webhook: it was deleted, or Label Studio was not allowed to "
            "make it beside the backend",
            _connect(case),
        )
    wrong = []
    if not row.get("is_active"):
        wrong.append("is switched off")
    if not row.get("send_payload"):
        wrong.append("sends no payload")
    if not row.get("send_for_all_actions"):
        wrong.append("sends some events only")
    if (row.get("headers") or {}) != wanted_webhook(case.settings, case.url, row)["headers"]:
        held = "Authorization" in (row.get("headers") or {})
        wrong.append("sends another Authorization than these settings" if held else "sends no Authorization")
    if wrong:
        return failed(f"it {', '.join(wrong)}", _connect(case))
    guarded = "with our Authorization" if authorization(case.settings) else "no Authorization is asked for"
    return fine(f"active, with payload, all events; {guarded}")


def _one_connection(case: Case) -> Outcome:
    others = other_connections(case.backends, case.client.webhooks(case.project_id), case.url, case.settings)
    if others:
        return failed(
            f"the project also holds this backend at {', '.join(others)}: it sends every event more than once, and the "
            "options of one connection replace the other's",
            ONE_CONNECTION,
        )
    return fine("no other leads to this backend")


def _event_arrives(case: Case) -> Outcome:
    """Setting the title to what it is makes Label Studio tell PROJECT_UPDATED, and changes nothing."""
    before = _updates(case)
    title = case.client.project(case.project_id)["title"]
    case.client.patch_project(case.project_id, {"title": title})
    start = time.monotonic()
    while (waited_s := time.monotonic() - start) < ARRIVES_WITHIN_S:
        if _updates(case) > before:
            return fine(f"PROJECT_UPDATED came {waited_s:.1f} s after its cause")
        time.sleep(POLL_S)
    return failed(
        f"Label Studio was to tell of a change of the project, and nothing came within {ARRIVES_WITHIN_S:.0f} s",
        f"can Label Studio's machine reach {case.url}? Its log says why a webhook failed; {_connect(case)}",
    )


def _updates(case: Case) -> float:
    told = case.ask_backend("/metrics").text
    return sum(float(count) for count in UPDATES.findall(told))


def _connect(case: Case) -> str:
    return f"run `ml-backend connect --project {case.project_id} --url {case.url}`"


CONNECTION_CHECKS = (
    Check("private addresses", _private_addresses, needs=("project",), remedy="try again when Label Studio answers"),
    Check("backend", _backend_answers, needs=("settings",)),
    Check("connection", _backend_connected, needs=("project",), remedy="try again when Label Studio answers"),
    Check("webhook", _webhook, needs=("connection",), remedy="try again when Label Studio answers"),
    Check("one connection", _one_connection, needs=("connection",), remedy="try again when Label Studio answers"),
    Check("event arrives", _event_arrives, needs=("webhook", "backend"), remedy="look into Label Studio's log"),
)

WANTED = 3
LOOKED_THROUGH = 300  # tasks from which the images are chosen
log = structlog.get_logger(__name__)

NOT_ALLOWED = "not among the hosts that images may come from"  # as `Elsewhere` says it

MARKED = (
    "Label Studio marks every imported annotation as ground truth; the option ground_truth says what they count as."
)
UNREAD = "the backend has not read the project yet; it does so once a minute"

REMEDY: dict[ImageErrorKind, str] = {
    "missing": "put the file back, or delete its task",
    "forbidden": "let the user of AL_LABEL_STUDIO_API_KEY, or the storage connected in Label Studio, read the file",
    "refused": "open the address in a browser: it must lead to the image file; mend it, or delete its task",
    "unreachable": "start what serves the images, or let this machine reach it",
    "timed-out": "bring what serves the images nearer, or shrink them",
    "too-large": "shrink the images",
    "empty": "export the images again",
    "not-an-image": "export the images again, as PNG or JPEG",
    "unsupported": "export the images as PNG or JPEG",
    "damaged": "export the images again",
}


def _images(case: Case) -> Outcome:
    tasks = list(islice(_tasks(case), LOOKED_THROUGH))
    if not tasks:
        return skipped("the project holds no images yet")
    chosen = [tasks[place] for place in sorted({0, len(tasks) // 2, len(tasks) - 1})]
    hostname = case.stored_connection.hostname if case.stored_connection else None
    read, sizes, start = 0, 0, time.monotonic()
    problems: list[tuple[str, str]] = []
    with closing(LabelStudioImages(case.client, hostname, hosts=case.settings.allowed_image_hosts)) as source:
        for task in chosen:
            try:
                sizes += _read(source, read_image(task, case.config), case.options.image_side)
                read += 1
            except ImageError as error:
                problems.append((str(error), _remedy(error)))
            except PayloadError as error:
                problems.append((str(error), "mend the task's data, or the value of the label config's Image tag"))
    if problems:
        seen, remedy = problems[0]
        return failed(f"{read} of {len(chosen)} could be read; {seen}", remedy)
    took_s = (time.monotonic() - start) / read
    return fine(f"{read} decoded, {sizes / read / 1e6:.2f} MB and {took_s:.2f} s each on average")


def _left_out(case: Case) -> Outcome:
    if (standing := case.standing) is None:
        return skipped(UNREAD)
    told = "; ".join(one.sentence for one in standing.left_out)
    if mendable := standing.mendable:
        return failed(told, MENDABLE[mendable[0].kind])
    return fine(told or "no task and no label")


def _labelling(case: Case) -> Outcome:
    if (standing := case.standing) is None:
        return skipped(UNREAD)
    if standing.verdict == "unusable":
        return failed(standing.sentence, "mend what it names; the next round sees it")
    start = standing.start
    if standing.verdict == "blocked" and start is not None:
        if standing.mendable:
            return failed(standing.sentence, "; or ".join((MENDABLE[standing.mendable[0].kind], *start.ways_out)))
        return fine(f"{standing.sentence} To train one, {'; or '.join(('import more images', *start.ways_out))}")
    return fine(f"{standing.sentence} {start.advice}" if start is not None else standing.sentence)


def _quarantine(case: Case) -> Outcome:
    barred = Quarantine(case.kept.folder).listed()
    if not barred:
        return fine("no image is left out")
    return fine(f"{len(barred)} images are left out, such as {barred[0].image_id}: {barred[0].reason}")


def _same_image_twice(case: Case) -> Outcome:
    if case.images is None:
        return skipped(UNREAD)
    return fine(case.images.count().sentence or "every image stands in one task")


def _ground_truths(case: Case) -> Outcome:
    if case.mirror is None:
        return skipped(UNREAD)
    found = ground_truths(case.mirror, case.config, case.options, case.images)
    return fine(found.sentence or "no annotation is marked as ground truth")


def ground_truth_note(case: Case) -> str:
    """What ``connect`` says of ground truths; empty where there is none, or it cannot be told."""
    try:
        if not case.project.get("ground_truth_number"):
            return ""
        mirror = case.mirror or read_project(case.client, case.project_id, None).mirror
        return f"{ground_truths(mirror, case.config, case.options, case.images).sentence} {MARKED}"
    except BackendError as error:
        log.warning("ground truths were not counted", error=str(error))
        return ""


def _remedy(error: ImageError) -> str:
    if NOT_ALLOWED in str(error):
        return "name that host in AL_IMAGE_HOSTS, if it is to be asked; else mend the task's address"
    return REMEDY[error.kind]


def _tasks(case: Case) -> Iterator[dict[str, object]]:
    """Those that a round would score first; of a project that is labelled to the end, any."""
    waiting = case.client.unlabelled_tasks(case.project_id)
    first = next(waiting, None)
    return case.client.changed_tasks(case.project_id) if first is None else chain([first], waiting)


def _read(source: LabelStudioImages, image: ImageRef, side: int) -> int:
    """Fetch and decode; the size of the file in bytes."""
    content = source.fetch(image)
    decode(content, side, image.id)
    return len(content)


IMAGES_CHECKS = (
    Check("images", _images, needs=("options",), remedy="try again when Label Studio answers"),
    Check("quarantine", _quarantine, needs=("rounds on disk",)),
    Check("same image twice", _same_image_twice, needs=("options", "rounds on disk")),
    Check("ground truths", _ground_truths, needs=("classes", "rounds on disk")),
    Check("left out", _left_out, needs=("classes", "rounds on disk"), remedy="mend or move away what is named"),
    Check("labelling", _labelling, needs=("classes", "rounds on disk"), remedy="mend or move away what is named"),
)

PUBLISHED_AGAIN = (
    "wait two minutes: the backend publishes the ranking again by itself while a worker runs; press Top up on its page "
    "to have it at once"
)


def _sampling(case: Case) -> Outcome:
    return _as_wanted(case, "sampling") or fine(str(case.project.get("sampling")))


def _readers(case: Case) -> Outcome:
    return _as_wanted(case, "readers per image") or fine(str(case.options.annotations_per_task))


def _predictions_on(case: Case) -> Outcome:
    return _as_wanted(case, "predictions on") or fine("on")


def _as_wanted(case: Case, aspect: Aspect) -> Outcome | None:
    """The problem of that aspect, which the project's page names in the same words; None where there is none."""
    for problem in case.serving_problems:
        if problem.aspect == aspect:
            if problem.foreign:
                return failed(problem.seen, ONE_INSTALLATION)
            return failed(problem.seen, PUBLISHED_AGAIN if problem.mended else _connect_order(case))
    return None


def _connect_order(case: Case) -> str:
    return f"run `ml-backend connect --project {case.project_id} --url {case.url}`"


def _automatic(case: Case) -> Outcome:
    if not case.project.get("min_annotations_to_start_training"):
        return fine("off, as the project has it: a round begins only when somebody starts it")
    return fine(f"after {case.options.retrain_after} changed annotations")


def _store(case: Case) -> Outcome:
    if case.kept.connection() is None:
        if case.backend is None:
            return skipped("the project is not connected yet")
        return failed(
            f"AL_DATA_DIR={case.settings.data_dir} knows nothing of project {case.key}, which Label Studio has "
            "connected",
            "set AL_DATA_DIR as it is set for `ml-backend serve` and `ml-backend work`: they share one folder",
        )
    # Both raise where the file is damaged; what readers are served is not known then.
    case.kept.published()
    case.kept.imported_versions()
    rounds = case.kept.round_ids()
    return fine(f"{len(rounds)} rounds, the last {rounds[-1]}" if rounds else "no round yet")


def _order(case: Case) -> Outcome:
    """The project's model version is what its readers' order comes from."""
    if (problem := _as_wanted(case, "order served")) is not None:
        return problem
    version = case.serving.version
    if version and is_lost(case.serving):
        return fine("no image waits for a label")
    return fine(f"{version}, the live ranking") if version else skipped("no ranking is published yet")


def _predictions(case: Case) -> Outcome:
    if (problem := _as_wanted(case, "predictions")) is not None:
        return problem
    published = case.kept.published()
    if published is None:
        return skipped("no ranking is published yet")
    # A task that is deleted takes its prediction along.
    gone = len(published.image_ids) - case.serving.there
    return fine(f"{case.serving.held} of {published.version}{f'; {gone} images were deleted since' if gone else ''}")


ORDER_CHECKS = (
    Check("sampling", _sampling, needs=("options",)),
    Check("readers per image", _readers, needs=("options",)),
    Check("predictions on", _predictions_on, needs=("options",)),
    Check("automatic rounds", _automatic, needs=("options",)),
    Check("rounds on disk", _store, needs=("project",), remedy="mend or move away the file that is named"),
    Check(
        "order served", _order, needs=("options", "rounds on disk"), remedy="mend or move away the file that is named"
    ),
    Check(
        "predictions",
        _predictions,
        needs=("options", "rounds on disk"),
        remedy="mend or move away the file that is named",
    ),
)
