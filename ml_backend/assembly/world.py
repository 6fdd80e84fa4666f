"""A project as a worker meets it: its store, its Label Studio, its images, and what learns from them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

from ml_backend.engine.ports import Learner, Progress
from ml_backend.engine.sharing import LayOut
from ml_backend.engine.split import fold_split
from ml_backend.errors import RequestRefused, UnknownProject
from ml_backend.images import ImageSource, QuarantinedSource
from ml_backend.images.cached import ImageCache, content_digests
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.images import LabelStudioImages
from ml_backend.model.committee import CommitteeLearner, Tell, make_learner
from ml_backend.model.learner import IMAGES, McDropoutLearner
from ml_backend.model.machine import machine
from ml_backend.model.randomness import derive
from ml_backend.records import Connection, ImageRef, ProjectKey
from ml_backend.settings import ProjectOptions, Settings
from ml_backend.storage import ProjectStore, RoundStore, ScoringFolder, ScoringTask
from ml_backend.storage.quarantine import Quarantine
from ml_backend.strategies import Need

__all__ = ["World", "label_config", "lay_out", "world_of"]

PATIENCE_S = 90.0  # a restart of Label Studio takes 11 to 33 s, and must not cost the round its training
CACHE_GB = 10**9


@dataclass(frozen=True, slots=True)
class World:
    """A project as a worker meets it."""

    settings: Settings
    key: ProjectKey
    store: RoundStore
    project: ProjectStore
    connection: Connection
    client: LabelStudioClient
    images: ImageSource
    quarantine: Quarantine
    read_digests: Callable[[Iterable[ImageRef]], dict[str, str]]
    """Address -> digest of the bytes there, of images that a round has read."""

    def image_cache(self, side: int) -> ImageCache:
        """The cache that the learners read images from, of this side."""
        return ImageCache(self.images, self.store.cache / IMAGES, side, int(self.settings.cache_gb * CACHE_GB))

    def learner(
        self, options: ProjectOptions, progress: Progress, warm_from: Path | None = None, *, twin: bool = False
    ) -> McDropoutLearner | CommitteeLearner:
        """What learns by these options; a twin differs by its seed alone, and tears labels apart as the other does."""

        def make(options: ProjectOptions, seed: int, tell: Tell) -> McDropoutLearner:
            return McDropoutLearner(
                options=options,
                source=self.images,
                cache=self.store.cache,
                device=self.settings.device,
                seed=seed,
                progress=tell,
                warm_from=warm_from,
                cache_limit_bytes=int(self.settings.cache_gb * CACHE_GB),
            )

        folds = partial(fold_split, seed=options.seed)
        if twin:
            options = options.model_copy(update={"seed": derive(options.seed, "twin")})
        return make_learner(make, options, folds, progress)


@contextmanager
def world_of(settings: Settings, key: ProjectKey, *, patience_s: float = PATIENCE_S) -> Iterator[World]:
    """A project, with connections that end with the block.

    Args:
        settings: of the installation.
        key: of the project.
        patience_s: seconds for which a Label Studio that is away is waited for.

    Raises:
        UnknownProject: it was never connected.
        SettingsError: no API key.
    """
    store = RoundStore(settings.data_dir)
    project = store.project(key)
    connection = project.connection()
    if connection is None:
        raise UnknownProject(f"project {key} is not connected: run `ml-backend connect --project {key.id}`")
    hostname = settings.trusted_hostname(connection.hostname)
    with (
        LabelStudioClient.from_settings(settings, hostname, patience_s=patience_s) as client,
        closing(LabelStudioImages(client, connection.hostname, hosts=settings.allowed_image_hosts)) as images,
    ):
        quarantine = Quarantine(project.folder)
        source = QuarantinedSource(images, quarantine, version=images.version)
        digests = partial(content_digests, images, store.cache / IMAGES)
        yield World(settings, key, store, project, connection, client, source, quarantine, digests)


def lay_out(world: World, round_id: str, options: ProjectOptions) -> LayOut:
    """What writes down, for a round's helpers, the network of these options and the shards."""

    def written(learner: Learner, shards: Sequence[Sequence[ImageRef]], needs: frozenset[Need]) -> ScoringFolder:
        task = ScoringTask(options=options, needs=needs, machine=machine(world.settings.device), shards=len(shards))
        return world.project.begin_scoring(round_id, task, shards, learner)

    return written


def label_config(client: LabelStudioClient, key: ProjectKey) -> str:
    """As it stands now: the event of its change is lost where the web process was down.

    Raises:
        UnknownProject: Label Studio has no such project any more, or has given its id to another.
        LabelStudioError: it does not answer, or refuses.
    """
    try:
        project = client.project(key.id)
    except RequestRefused as error:
        if error.status != 404 or not client.knows_us():
            raise
        raise UnknownProject(
            f"project {key} is gone: the Label Studio at {client.url} has no project {key.id} that the user of "
            "AL_LABEL_STUDIO_API_KEY may see"
        ) from error
    created = int(datetime.fromisoformat(str(project["created_at"])).timestamp())
    if created != key.created:
        raise UnknownProject(f"project {key} is gone: Label Studio has given its id to {key.id}.{created}")
    return str(project["label_config"])
