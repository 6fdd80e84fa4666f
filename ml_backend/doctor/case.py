"""One project in one installation: whatever several checks look at, asked for once."""

from base64 import b64encode
from collections.abc import Callable
from datetime import datetime
from functools import cached_property
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx

from ml_backend.errors import BackendError, PayloadError, StorageError, UnknownProject
from ml_backend.insight.network import known_network
from ml_backend.insight.standing import Standing, project_standing
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.connect import find_webhook
from ml_backend.label_studio.duplicates import TaskImages
from ml_backend.label_studio.formats import LabelConfig, parse_label_config, training_classes
from ml_backend.label_studio.mirror import Mirror
from ml_backend.label_studio.reading import read_project
from ml_backend.label_studio.route import BACKEND, FAILURES, Route
from ml_backend.label_studio.serving import Serving, ServingProblem, read_serving, serving_problems
from ml_backend.queueing import RoundQueue
from ml_backend.records import Connection, ProjectKey
from ml_backend.settings import ProjectOptions, Settings, checked_address
from ml_backend.storage import ProjectStore, RoundStore
from ml_backend.storage.annotations import ReadingStore
from ml_backend.storage.quarantine import Quarantine

__all__ = ["Case", "Json"]

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
        network = known_network(map(self.kept.brief, self.kept.round_ids()))
        barred = {one.image_id: one.reason for one in Quarantine(self.kept.folder).listed()}
        return project_standing(
            self.mirror, self.config, self.options, self.images, quarantined=barred, network=network
        )
