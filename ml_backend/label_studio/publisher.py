"""Publishes a ranking as predictions that order a project's tasks, and checks that readers are served it.

Label Studio serves tasks by ascending prediction score of the project's model version. Every publish imports a new
version, switches to it and deletes old ones later, so that a crash at any point leaves one whole order:

=================================  ==============================  ====================================================
crash                              order that is served            who goes on
=================================  ==============================  ====================================================
before, during, after the import   the old one                     the round, anew; what was imported is on record
after the switch                   the new one                     the next publish records what it has replaced
between two lots of a deletion     the new one                     the reconciler, and the next publish: what is to be
                                                                   deleted is on record before the first lot
=================================  ==============================  ====================================================
"""

import re
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import accumulate, islice
from typing import Any, Literal, Protocol

import structlog

from ml_backend.config import ProjectOptions
from ml_backend.errors import EmptyPool, LabelStudioError, RequestRefused, Unreachable
from ml_backend.label_studio.client import BUSY, HeldPredictions, LabelStudioClient
from ml_backend.label_studio.formats import LabelConfig, prediction
from ml_backend.schemas import FrozenModel, ImportedVersion, PublishedRanking, Ranking, RoundReport

SAMPLING = "Uncertainty sampling"
RANKING = re.compile(r"al-r\d{6,}-\w+-[0-9a-f]{6}")  # model versions as ``LabelStudioPublisher`` names them
KEEP_AT_LEAST = timedelta(hours=25)
"""How long a replaced version is kept: Label Studio reserves an image for a day (its TASK_LOCK_TTL)."""
KEEP_AT_MOST = timedelta(days=7)
KEPT_PREDICTIONS = 5000
"""Predictions of replaced versions up to which one is kept beyond ``KEEP_AT_LEAST``, about 0.2 kB each: a page that
stays open over a weekend can then still be submitted."""
LOT = 30
"""Largest number of predictions deleted in one transaction. Label Studio updates the summary of the project with each
of them, at 6 to 34 ms, and whoever submits an annotation waits for that row: one second with a lot of this size."""
DELETING_S = 5.0
"""Seconds for which a publish, or a comparison of the reconciler, deletes."""
MANY_PUBLISHED = 2000
"""Images published together beyond which a smaller reserve is advised."""
POLL_S = 2.0
ONE_INSTALLATION = (
    "stop the other installation, or remove one of the two from the project; then press Train now on the project's "
    "page. Where there is no other, the data folder is older than the ranking, as a restored backup is: press Train now"
)
Aspect = Literal["sampling", "readers per image", "predictions on", "order served", "predictions"]
log = structlog.get_logger(__name__)


# The reserve


def publication_size(options: ProjectOptions) -> int | None:
    """Number of images published together, where there are as many; None for all."""
    return None if options.reserve == "all" else options.batch_size + options.reserve


def low_water(options: ProjectOptions) -> int:
    """Number of remaining published images below which more are published from the last ranking.

    Half of the reserve, and no fewer than half a batch: time enough to publish more, also while a round trains. 0
    where all are published anyway.
    """
    return 0 if options.reserve == "all" else max(options.reserve // 2, options.batch_size // 2, 1)


def large_reserve(options: ProjectOptions, images: int) -> str:
    """A warning where every round publishes very many images; empty otherwise.

    Args:
        options: of the project.
        images: number of images that wait for a label.
    """
    if (together := min(publication_size(options) or images, images)) <= MANY_PUBLISHED:
        return ""
    # 0.9 ms a prediction to import, and 70 to 100 ms to delete, of which a minute has DELETING_S.
    return (
        f"With reserve={options.reserve} every round publishes {together} images. Label Studio takes about "
        f"{together / 1000:.0f} s to import them, during which its pages are slow, and a day later about "
        f"{together / 3600:.0f} h to delete them, a few a minute, so that readers do not wait. If more rounds end a "
        "day, predictions pile up. Set reserve=80: the ranking is extended before readers run out of images."
    )


def remaining_published(published: PublishedRanking, annotations: int | None) -> int:
    """Lower bound of the published images without an answer or a skip; those that are to be read again are not counted.

    Args:
        published: what is served.
        annotations: Label Studio's count now, skips included; None where it is not known, and no image counts as used.
    """
    if annotations is None or published.annotations is None:
        return published.first_reads
    return published.first_reads - max(0, annotations - published.annotations)


# Publishing


class PublishedStore(Protocol):
    """Keeps what Label Studio serves, and which versions it holds."""

    def set_published(self, published: PublishedRanking) -> None: ...

    def imported_versions(self) -> tuple[ImportedVersion, ...]: ...

    def set_imported_versions(self, versions: Sequence[ImportedVersion]) -> None: ...

    def asked_again(self) -> tuple[int, ...]: ...

    def set_asked_again(self, tasks: Sequence[int]) -> None: ...


class LabelStudioPublisher:
    """Satisfies ``rounds.interfaces.Publisher``. May be called again with the same report after a crash.

    Args:
        client: of Label Studio.
        project_id: of the project.
        config: its question.
        options: of the project.
        store: keeps what is served and which versions were imported.
        arrival_s: seconds to wait for an import without a response before it counts as failed.
        deleting_s: seconds for which replaced versions are deleted.
    """

    def __init__(
        self,
        client: LabelStudioClient,
        project_id: int,
        config: LabelConfig,
        options: ProjectOptions,
        store: PublishedStore,
        *,
        arrival_s: float = 120.0,
        deleting_s: float = DELETING_S,
    ) -> None:
        self._client = client
        self._project_id = project_id
        self._config = config
        self._options = options
        self._store = store
        self._arrival_s = arrival_s
        self._deleting_s = deleting_s

    def publish(self, report: RoundReport, guard: Callable[[], None]) -> PublishedRanking:
        """Import the batch and the reserve, switch to them, delete versions that no reader can hold any more.

        Args:
            report: a saved round.
            guard: called before each step that readers would notice.

        Raises:
            EmptyPool: every image of the ranking was labelled or deleted meanwhile.
            LabelStudioError: the old order is still served, unless the message says otherwise.
            StaleRound: from ``guard``.
        """
        version = f"al-{report.request.round_id}-{report.ranking.strategy}-{secrets.token_hex(3)}"
        seconds: dict[str, float] = {}
        guard()
        before = self._store.imported_versions()
        with _timed(seconds, "import"):
            image_ids, rereads, imported_at = self._import(report.ranking, version, guard)
        guard()
        with _timed(seconds, "switch"):
            self._client.patch_project(self._project_id, {"model_version": version})
        published = PublishedRanking(
            version=version,
            round_id=report.request.round_id,
            image_ids=image_ids,
            rereads=rereads,
            by_hand=report.ranking.by_hand,
            seconds=dict(seconds),
            published_at=datetime.now(UTC),
            imported_at=imported_at,
        )
        # Now, and again with the time of the deletion, which can take minutes.
        self._store.set_published(published)
        guard()
        with _timed(seconds, "delete"):
            self.put_back(rereads, guard)
            self._delete_expired(before, published)
            self._confirm(version, guard)
        published = published.model_copy(update={"seconds": seconds})
        self._store.set_published(published)
        return published

    def _import(
        self, ranking: Ranking, version: str, guard: Callable[[], None]
    ) -> tuple[tuple[str, ...], tuple[str, ...], datetime | None]:
        chosen = self._choose(ranking)
        rereads = self._ask_again(ranking, chosen, guard)
        image_ids = _with_rereads(ranking, chosen, rereads)
        # Before the import: Label Studio must never hold a version of ours that is not on record.
        self._store.set_imported_versions((*self._store.imported_versions(), ImportedVersion(version=version)))
        try:
            self._send(image_ids, ranking, version)
        except RequestRefused as error:
            if error.status in BUSY:  # of a proxy; Label Studio may still be importing
                self._await_arrival(version, len(image_ids), error)
            else:
                # One task deleted since the choice makes Label Studio refuse the whole import.
                chosen = self._choose(ranking)
                rereads = self._ask_again(ranking, chosen, guard)
                remaining = _with_rereads(ranking, chosen, rereads)
                if remaining == image_ids:
                    raise
                image_ids = remaining
                self._send(image_ids, ranking, version)
        except LabelStudioError as error:
            self._await_arrival(version, len(image_ids), error)
        held = self._held(version)
        if held.number != len(image_ids):
            imported = self._store.imported_versions()  # on record first: what is left is deleted later
            self._store.set_imported_versions(
                tuple(one.model_copy(update={"deleting": one.deleting or one.version == version}) for one in imported)
            )
            delete_in_lots(self._client, self._project_id, {version: held.number}, self._deleting_s)
            raise LabelStudioError(
                f"Label Studio took {held.number} of {len(image_ids)} predictions of version {version}, which are "
                "deleted again: its log names those that it dropped"
            )
        return image_ids, tuple(image_id for image_id in image_ids if image_id in rereads), held.newest

    def _ask_again(self, ranking: Ranking, chosen: Collection[str], guard: Callable[[], None]) -> dict[str, int]:
        """Let Label Studio serve the ranking's re-reads to a reader who has not had them.

        It serves a task while ``is_labeled`` is false and its annotations and locks are fewer than its ``overlap``.
        A crash leaves no task with an overlap that is not on record: the next publish puts it right.

        Returns:
            Image id -> number of the ranking's images that come before it, of those without a new annotation whose
            task Label Studio has opened. None where the owner has switched re-reads off since the round.
        """
        wanted = [one for one in ranking.rereads if one.image_id not in chosen]
        if not (wanted and self._options.reread_share):
            return {}
        skips_count = self._client.project(self._project_id).get("skip_queue") != "REQUEUE_FOR_OTHERS"
        found = self._client.task_counts(self._project_id, (int(one.image_id) for one in wanted))
        rereads = {}
        asked = {}
        for one in wanted:
            task = found.get(int(one.image_id))
            total, skips = (0, 0) if task is None else (task["total_annotations"], task["cancelled_annotations"])
            if total and total + skips <= one.answers:
                rereads[one.image_id] = one.after
                asked[int(one.image_id)] = total + (skips if skips_count else 0) + 1
        self._store.set_asked_again(list(dict.fromkeys((*self._store.asked_again(), *asked))))
        closed = {task_id: overlap for task_id, overlap in asked.items() if found[task_id]["overlap"] != overlap}
        changes = {task_id: {"overlap": overlap, "is_labeled": False} for task_id, overlap in closed.items()}
        refused = closed.keys() - self._patch_tasks(changes, guard)
        return {image_id: after for image_id, after in rereads.items() if int(image_id) not in refused}

    def put_back(self, kept: Collection[str], guard: Callable[[], None]) -> None:
        """Give the tasks that are not to be read again any more the project's overlap.

        Args:
            kept: ids of the images that stay open.
            guard: called before each task.

        Raises:
            LabelStudioError: the project or the tasks could not be read.
            StaleRound: from ``guard``.
        """
        if not (ended := [task_id for task_id in self._store.asked_again() if str(task_id) not in kept]):
            return
        # Not the option, of which Label Studio learns with the next connect.
        overlap = self._client.project(self._project_id)["maximum_annotations"]
        found = self._client.task_counts(self._project_id, ended)
        changes = {
            task_id: {"overlap": overlap, "is_labeled": task["total_annotations"] >= overlap}
            for task_id, task in found.items()
        }
        done = self._patch_tasks(changes, guard) | (set(ended) - found.keys())
        self._store.set_asked_again([task_id for task_id in self._store.asked_again() if task_id not in done])

    def _patch_tasks(self, changes: Mapping[int, Mapping[str, object]], guard: Callable[[], None]) -> set[int]:
        """Change tasks, and return those that were changed: one that is refused must not end the publishing."""
        done: set[int] = set()
        for task_id, fields in changes.items():
            guard()
            try:
                self._client.patch_task(task_id, fields)
            except LabelStudioError as error:
                log.warning("a task could not be opened or closed to another reader", task=task_id, error=str(error))
                if isinstance(error, Unreachable):
                    break  # each of the others would take as long
            else:
                done.add(task_id)
        return done

    def _await_arrival(self, version: str, expected: int, error: LabelStudioError) -> None:
        """Wait for an import without a response, which may have been done, or be done soon.

        Raises:
            LabelStudioError: the error given, where the predictions have not arrived in time.
        """
        deadline = time.monotonic() + self._arrival_s
        while self._held(version).number < expected:
            if time.monotonic() > deadline:
                raise error
            time.sleep(POLL_S)
        log.warning("an import had no response, but arrived", version=version, error=str(error))

    def _held(self, version: str) -> HeldPredictions:
        return self._client.held_predictions(self._project_id).get(version, HeldPredictions(0, None))

    def _choose(self, ranking: Ranking) -> tuple[str, ...]:
        """The batch and the reserve: the first unlabelled images of the ranking."""
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
            # By rank and not by acquisition value, which may tie, or be outside [0, 1].
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
        """Switch again where something has undone it, such as a late request of a run that has ended."""
        seen = self._client.project(self._project_id).get("model_version")
        if seen != version:
            log.warning("the order was switched away and is switched back", seen=seen)
            guard()
            self._client.patch_project(self._project_id, {"model_version": version})

    def _delete_expired(self, before: Sequence[ImportedVersion], published: PublishedRanking) -> None:
        """Record what the published version has replaced, and delete what no reader can hold any more.

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
        due = expired(replaced, held, now)
        known = {one.version: one.model_copy(update={"deleting": one.version in due}) for one in replaced}

        def record(gone: Collection[str]) -> None:
            imported = self._store.imported_versions()
            kept = [known.get(one.version, one) for one in imported if one.version not in gone]
            self._store.set_imported_versions(kept)

        record(())
        record(
            delete_in_lots(self._client, self._project_id, {name: held.get(name, 0) for name in due}, self._deleting_s)
        )


def delete_in_lots(
    client: LabelStudioClient, project_id: int, versions: Mapping[str, int], seconds: float = DELETING_S
) -> set[str]:
    """Delete model versions in lots of at most ``LOT`` predictions, between which readers submit.

    Safe to repeat, and beside another call. A refusal or no response is logged and ends the call: no order changes.

    Args:
        client: of Label Studio.
        project_id: of the project.
        versions: name -> number of predictions that Label Studio holds, the first to delete first.
        seconds: after which no further lot is begun.

    Returns:
        Names of those that Label Studio does not hold any more.
    """
    end = time.monotonic() + seconds
    gone = {name for name, number in versions.items() if not number}
    try:
        for name in (name for name, number in versions.items() if number):
            # Counted again: an import behind a time-out may have added thousands since.
            while (more := client.model_versions(project_id).get(name, 0) - LOT) > 0:
                deleted = 0
                for prediction_id in islice(client.predictions_of(project_id, name), more):
                    if time.monotonic() > end:
                        return gone
                    client.delete_prediction(prediction_id)
                    deleted += 1
                if not deleted:
                    return gone
            if time.monotonic() > end:
                return gone
            client.delete_model_version(project_id, name)
            gone.add(name)
    except LabelStudioError as error:
        log.warning("an old model version could not be deleted", version=name, error=str(error))
    return gone


def _with_rereads(ranking: Ranking, chosen: Sequence[str], rereads: Mapping[str, int]) -> tuple[str, ...]:
    """The chosen images with the re-reads at their places: image id -> number of the ranking's images before it."""
    place = {image_id: float(number) for number, image_id in enumerate(ranking.image_ids)}
    place |= {image_id: after - 0.5 for image_id, after in rereads.items()}
    return tuple(sorted((*chosen, *rereads), key=place.__getitem__))


def expired(versions: Sequence[ImportedVersion], held: Mapping[str, int], now: datetime) -> list[str]:
    """Names of the replaced versions to delete, oldest first.

    Kept are those replaced less than ``KEEP_AT_LEAST`` ago, whatever their size; and up to ``KEEP_AT_MOST`` ago, the
    newest first, while all that is kept comes to at most ``KEPT_PREDICTIONS``. A deletion that has begun goes on.

    Args:
        versions: on record; one that was not replaced is kept.
        held: predictions that Label Studio holds, by version.
        now: with a time zone.
    """
    ended = sorted(
        ((one.replaced_at, one.version, one.deleting) for one in versions if one.replaced_at is not None),
        reverse=True,
    )
    kept = accumulate(held.get(version, 0) for _, version, _ in ended)
    return [
        version
        for (replaced_at, version, deleting), total in zip(ended, kept, strict=True)
        if deleting or now - replaced_at > (KEEP_AT_MOST if total <= KEPT_PREDICTIONS else KEEP_AT_LEAST)
    ][::-1]


@contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[step] = time.perf_counter() - start


# What readers are served


class Serving(FrozenModel):
    """Settings and predictions in Label Studio that decide which image a reader is served next.

    Attributes:
        version: published model version; None where there is none.
        there: number of published images that the project still has.
        held: number of predictions of that version that the project holds.
        model_version: of the project; "" where it has none.
        sampling: of the project; likewise the rest.
        connected: whether the project has this ML backend; read only where the ranking is not held as published, since
            Label Studio calls every backend before it responds.
        foreign: whether ``model_version`` is the ranking of another installation of this backend.
        imported_again: whether predictions of that version were made after it was published.
        title: of the project, by which its pages name it.
    """

    version: str | None
    there: int
    held: int
    model_version: str
    sampling: str | None
    maximum_annotations: int | None
    overlap_cohort_percentage: int | None = None
    show_collab_predictions: bool
    connected: bool = True
    foreign: bool = False
    imported_again: bool = False
    title: str = ""


class ServingProblem(FrozenModel):
    """A reason why readers are not served the published ranking.

    Attributes:
        aspect: which part of the serving is wrong.
        seen: the state of Label Studio, in a sentence.
        mended: whether the backend publishes the ranking again by itself.
        foreign: whether another installation of this backend is the cause; see ``ONE_INSTALLATION``.
    """

    aspect: Aspect
    seen: str
    mended: bool = False
    foreign: bool = False


def wanted_project(options: ProjectOptions) -> dict[str, object]:
    """Settings of a project under which readers are served the ranking."""
    # Of all images; a `connect` that was interrupted leaves another share.
    share = {"overlap_cohort_percentage": 100} if options.annotations_per_task > 1 else {}
    return {
        "sampling": SAMPLING,
        "maximum_annotations": options.annotations_per_task,
        **share,
        # Off, each "Save" in the project's settings would drop the model version, and the order with it.
        # Our predictions are empty unless the owner asked for pre-labelling, so that nothing is shown.
        "show_collab_predictions": True,
    }


def read_serving(
    client: LabelStudioClient,
    project: Mapping[str, Any],
    tasks: Collection[int],
    published: PublishedRanking | None,
    imported: Callable[[], Collection[ImportedVersion]],
    *,
    user: str | None = None,
) -> Serving:
    """Read what Label Studio serves, in one request for predictions, and none before the first ranking.

    Where the predictions are not as published, a second request checks whether the project still has this ML backend.

    Args:
        client: of Label Studio.
        project: the project's row.
        tasks: ids of the tasks that the project has.
        published: what was published last.
        imported: reads the model versions on this installation's record; called only where another one is served.
        user: name that callers of this backend give; None where none is required, and any backend may be this one.

    Raises:
        LabelStudioError: no response, or a refusal.
        StorageError: from ``imported``.
    """
    none = HeldPredictions(0, None)
    held = none if published is None else client.held_predictions(int(project["id"])).get(published.version, none)
    imported_at = None if published is None else published.imported_at
    version = None if published is None else published.version
    model_version = project.get("model_version") or ""
    another = model_version != version and RANKING.fullmatch(model_version) is not None
    serving = Serving(
        version=version,
        there=0 if published is None else sum(int(image_id) in tasks for image_id in published.image_ids),
        held=held.number,
        model_version=model_version,
        sampling=project.get("sampling"),
        maximum_annotations=project.get("maximum_annotations"),
        overlap_cohort_percentage=project.get("overlap_cohort_percentage"),
        show_collab_predictions=bool(project.get("show_collab_predictions")),
        foreign=another and model_version not in {one.version for one in imported()},
        # It may be older: the newest prediction is deleted with its task.
        imported_again=imported_at is not None and held.newest is not None and held.newest > imported_at,
        title=project.get("title") or "",
    )
    if not is_lost(serving):
        return serving
    connected = any(user is None or row.get("basic_auth_user") == user for row in client.backends(int(project["id"])))
    return serving.model_copy(update={"connected": connected})


def serving_problems(
    serving: Serving, options: ProjectOptions, title: str, *, waits: bool = True
) -> list[ServingProblem]:
    """Why readers are not served the published ranking; empty where they are.

    Args:
        serving: the state of Label Studio.
        options: of the project.
        title: of the backend in Label Studio; with it as model version, Label Studio serves in random order.
        waits: whether an image waits for a label; where none does, a lost ranking is no problem.
    """
    found = _setting_problems(serving, options)
    random = ", the backend's title, which serves in random order" if serving.model_version == title else ""
    if serving.version is None:
        if random:
            seen = f"model_version is {serving.model_version!r}{random}; no ranking is published yet"
            found.append(ServingProblem(aspect="order served", seen=seen))
        return found
    if not waits:
        return found
    alone = ""
    if not serving.connected:
        alone = "; it is not published again, since the project does not have this ML backend any more"
    elif serving.foreign:
        alone = "; another installation of this backend publishes its ranking here, so this one does not"
    cause = {"mended": is_lost(serving), "foreign": serving.connected and serving.foreign}
    if serving.model_version != serving.version:
        seen = f"model_version is {serving.model_version!r}{random}; the published ranking is {serving.version}{alone}"
        found.append(ServingProblem(aspect="order served", seen=seen, **cause))
    if serving.held != serving.there or serving.imported_again:
        again = f"predictions of {serving.version} were imported again in place of the published ones"
        numbers = (
            f"Label Studio holds {serving.held} predictions of {serving.version}, and {serving.there} of its "
            "images are there"
        )
        seen = f"{again if serving.held == serving.there else numbers}{alone}"
        found.append(ServingProblem(aspect="predictions", seen=seen, **cause))
    return found


def _setting_problems(serving: Serving, options: ProjectOptions) -> list[ServingProblem]:
    found = []
    wanted = wanted_project(options)
    if serving.sampling != wanted["sampling"]:
        seen = f"Label Studio serves by {serving.sampling!r}, and the ranking only by {SAMPLING!r}"
        found.append(ServingProblem(aspect="sampling", seen=seen))
    if serving.maximum_annotations != wanted["maximum_annotations"]:
        seen = (
            f"an image is shown to {serving.maximum_annotations} readers, and annotations_per_task is "
            f"{options.annotations_per_task}"
        )
        found.append(ServingProblem(aspect="readers per image", seen=seen))
    elif "overlap_cohort_percentage" in wanted and serving.overlap_cohort_percentage not in (None, 100):
        seen = f"only {serving.overlap_cohort_percentage} % of the images are shown to more than one reader"
        found.append(ServingProblem(aspect="readers per image", seen=seen))
    if not serving.show_collab_predictions:
        seen = "predictions are switched off: the next Save of the project's settings drops the order"
        found.append(ServingProblem(aspect="predictions on", seen=seen))
    return found


def is_lost(serving: Serving) -> bool:
    """Whether Label Studio does not hold the ranking as published, so that the backend publishes it again.

    Not where the owner has removed the backend from the project, nor where another installation of this backend
    publishes in the same project: the two would replace each other's ranking every minute.
    """
    changed = serving.model_version != serving.version or serving.held != serving.there or serving.imported_again
    return serving.version is not None and serving.connected and not serving.foreign and changed
