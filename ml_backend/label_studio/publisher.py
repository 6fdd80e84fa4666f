"""Publishes a ranking as the predictions that order a project's tasks in Label Studio.

Label Studio's "Uncertainty sampling" serves the task whose prediction under the project's ``model_version`` has the
lowest score. A ranking is imported as predictions under a version of its own, and becomes the order in one step, when
``model_version`` is set to it: until then the old order is served, from then on the new one.

A replaced version is kept for a while. Label Studio's page opens an image from its prediction and sends that
prediction's id with the answer, so that an answer to an image that was opened before the switch is refused (400,
"Invalid pk") once its prediction is deleted. A reader may hold an image for a day.

==================  =====================================================================
a crash after       leaves
==================  =====================================================================
the import          the old order; the new version is on record, and is deleted in time
the switch          the new order; the next publish notes when the old one was replaced
==================  =====================================================================

Publishing is resumed by doing it again, from any step. Every attempt imports under a version of its own: what an
earlier attempt sent may still arrive, and then lies under a version that is not served. Whether an import arrived is
counted in Label Studio. Only versions on this installation's record are deleted, each noted before it is imported.
"""

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from typing import Protocol

import structlog

from ml_backend.errors import EmptyPool, LabelStudioError, RequestRefused
from ml_backend.label_studio.client import HeldPredictions, LabelStudioClient
from ml_backend.label_studio.formats import LabelConfig, prediction
from ml_backend.records import ImportedVersion, Published, Ranking, RoundReport
from ml_backend.settings import ProjectOptions

__all__ = ["KEEP_AT_LEAST", "LabelStudioPublisher", "PublishedStore", "expired"]

KEEP_AT_LEAST = timedelta(hours=25)
"""How long a replaced version is kept: Label Studio reserves an image for a day (its TASK_LOCK_TTL)."""
KEEP_AT_MOST = timedelta(days=7)
KEPT_PREDICTIONS = 5000
"""Predictions of replaced versions up to which one is kept beyond ``KEEP_AT_LEAST``, about 0.2 kB each: a page that
stays open over a weekend can then still be submitted."""
# Answered by what stands before Label Studio, which may be at it still.
UNDECIDED = frozenset({502, 503, 504})
POLL_S = 2.0

log = structlog.get_logger(__name__)


class PublishedStore(Protocol):
    """Stores what Label Studio serves, and which versions it holds."""

    def set_published(self, published: Published) -> None: ...

    def imported_versions(self) -> tuple[ImportedVersion, ...]: ...

    def set_imported_versions(self, versions: Sequence[ImportedVersion]) -> None: ...


class LabelStudioPublisher:
    """Satisfies ``engine.ports.Publisher``. May be called again with the same report after a crash."""

    def __init__(
        self,
        client: LabelStudioClient,
        project_id: int,
        config: LabelConfig,
        options: ProjectOptions,
        store: PublishedStore,
        *,
        arrival_s: float = 120.0,
    ) -> None:
        """Put it together.

        Args:
            client: of Label Studio.
            project_id: of the project.
            config: its question.
            options: its owner's choice.
            store: told what is served.
            arrival_s: how long an import that was cut off is waited for, before it counts as failed.
        """
        self._client = client
        self._project_id = project_id
        self._config = config
        self._options = options
        self._store = store
        self._arrival_s = arrival_s

    def publish(self, report: RoundReport, guard: Callable[[], None]) -> Published:
        """Import the batch and the reserve, switch to them, delete versions that no reader can hold any more.

        Args:
            report: a saved round.
            guard: called before each step that readers would notice.

        Raises:
            EmptyPool: every image of the ranking was labelled or deleted meanwhile.
            LabelStudioError: the old order still stands, unless the message says otherwise.
            StaleRound: from ``guard``.
        """
        version = f"al-{report.request.round_id}-{report.ranking.strategy}-{secrets.token_hex(3)}"
        seconds: dict[str, float] = {}
        guard()
        before = self._store.imported_versions()
        with _timed(seconds, "import"):
            image_ids, imported_at = self._import(report.ranking, version)
        guard()
        with _timed(seconds, "switch"):
            self._client.patch_project(self._project_id, {"model_version": version})
        published = Published(
            version=version,
            round_id=report.request.round_id,
            image_ids=image_ids,
            seconds=dict(seconds),
            published_at=datetime.now(UTC),
            imported_at=imported_at,
        )
        # At once, and again with the time of the deletion, which can take minutes.
        self._store.set_published(published)
        guard()
        with _timed(seconds, "delete"):
            self._delete_expired(before, published)
            self._confirm(version, guard)
        published = published.model_copy(update={"seconds": seconds})
        self._store.set_published(published)
        return published

    def _import(self, ranking: Ranking, version: str) -> tuple[tuple[str, ...], datetime | None]:
        image_ids = self._choose(ranking)
        # Before the import: no version of ours may ever lie in Label Studio without being on record.
        self._store.set_imported_versions((*self._store.imported_versions(), ImportedVersion(version=version)))
        try:
            self._send(image_ids, ranking, version)
        except RequestRefused as error:
            if error.status in UNDECIDED:
                self._await_arrival(version, len(image_ids), error)
            else:
                # One task deleted since we looked makes Label Studio refuse the whole import.
                remaining = self._choose(ranking)
                if remaining == image_ids:
                    raise
                image_ids = remaining
                self._send(image_ids, ranking, version)
        except LabelStudioError as error:
            self._await_arrival(version, len(image_ids), error)
        held = self._held(version)
        if held.number != len(image_ids):
            self._delete(version)
            raise LabelStudioError(
                f"Label Studio took {held.number} of {len(image_ids)} predictions of version {version}, which was "
                "deleted again: its log names those that it dropped"
            )
        return image_ids, held.newest

    def _await_arrival(self, version: str, wanted: int, error: LabelStudioError) -> None:
        """An import without an answer may have been done, or be done in a while.

        Raises:
            LabelStudioError: the error given, where nothing has arrived in time.
        """
        deadline = time.monotonic() + self._arrival_s
        while self._held(version).number < wanted:
            if time.monotonic() > deadline:
                raise error
            time.sleep(POLL_S)
        log.warning("an import had no answer, but arrived", version=version, error=str(error))

    def _held(self, version: str) -> HeldPredictions:
        return self._client.held_predictions(self._project_id).get(version, HeldPredictions(0, None))

    def _choose(self, ranking: Ranking) -> tuple[str, ...]:
        """The batch and the reserve: the first of the ranking that still wait for a label."""
        ranked = ranking.image_ids
        reserve = self._options.reserve
        wanted = len(ranked) if reserve == "all" else ranking.batch_size + reserve
        chosen: list[str] = []
        seen = 0
        while seen < len(ranked) and len(chosen) < wanted:
            candidates = ranked[seen : seen + wanted - len(chosen)]
            waiting = self._client.still_unlabelled(self._project_id, map(int, candidates))
            chosen += [image_id for image_id in candidates if int(image_id) in waiting]
            seen += len(candidates)
        if not chosen:
            raise EmptyPool(
                f"all {len(ranked)} ranked images of project {self._project_id} were labelled or deleted meanwhile"
            )
        return tuple(chosen)

    def _send(self, image_ids: Sequence[str], ranking: Ranking, version: str) -> None:
        suggestions = ranking.suggestions if self._options.prelabel else {}
        predictions = [
            # By rank and not by acquisition value, which may tie, or lie outside of [0, 1].
            prediction(
                image_id,
                rank / len(image_ids),
                version,
                self._config,
                suggestions.get(image_id),
                confidence=ranking.confidences.get(image_id),
            )
            for rank, image_id in enumerate(image_ids)
        ]
        self._client.import_predictions(self._project_id, predictions)

    def _confirm(self, version: str, guard: Callable[[], None]) -> None:
        """Switch again where something has undone it, such as a dead run's request that came through late."""
        seen = self._client.project(self._project_id).get("model_version")
        if seen != version:
            log.warning("the order was switched away and is switched back", seen=seen)
            guard()
            self._client.patch_project(self._project_id, {"model_version": version})

    def _delete_expired(self, before: Sequence[ImportedVersion], published: Published) -> None:
        """Note what the published version has replaced, and delete what no reader can hold any more.

        Args:
            before: on record when this publish began, so that a newer run's version is never among them.
            published: what is served now.
        """
        now = published.published_at
        replaced = [
            one if one.replaced_at else one.model_copy(update={"replaced_at": now})
            for one in before
            if one.version != published.version
        ]
        held = self._client.model_versions(self._project_id)
        gone: set[str] = set()
        deleted = 0
        for name in expired(replaced, held, now):
            if deleted and deleted + held.get(name, 0) > KEPT_PREDICTIONS:
                break  # readers wait meanwhile, about 16 ms a prediction on sqlite: the next publish goes on
            if name not in held or self._delete(name):
                gone.add(name)
                deleted += held.get(name, 0)
        known = {one.version: one for one in replaced}
        self._store.set_imported_versions(
            [known.get(one.version, one) for one in self._store.imported_versions() if one.version not in gone]
        )

    def _delete(self, version: str) -> bool:
        """Delete a version; False where Label Studio refused."""
        try:
            self._client.delete_model_version(self._project_id, version)
        except LabelStudioError as error:
            # It disturbs no order where it lies, and the next publish tries again.
            log.warning("an old model version stays for now", version=version, error=str(error))
            return False
        return True


def expired(versions: Sequence[ImportedVersion], held: Mapping[str, int], now: datetime) -> list[str]:
    """Names the replaced versions that are kept no longer, oldest first.

    Kept are those replaced less than ``KEEP_AT_LEAST`` ago, whatever their size; and up to ``KEEP_AT_MOST`` ago, the
    newest first, while all that is kept comes to at most ``KEPT_PREDICTIONS``.

    Args:
        versions: on record; one that was not replaced is kept.
        held: predictions that Label Studio holds, by version.
        now: with a time zone.
    """
    ended = sorted(
        ((one.replaced_at, one.version) for one in versions if one.replaced_at is not None),
        reverse=True,
    )
    kept = accumulate(held.get(version, 0) for _, version in ended)
    return [
        version
        for (replaced_at, version), total in zip(ended, kept, strict=True)
        if now - replaced_at > (KEEP_AT_MOST if total <= KEPT_PREDICTIONS else KEEP_AT_LEAST)
    ][::-1]


@contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[step] = time.perf_counter() - start
