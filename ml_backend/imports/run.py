"""From a source of files to the tasks of a project, and to the first published order.

Nothing here remembers which tasks were made: every task names its pixels in its ``meta``, and an import begins by
reading those. So it may be stopped at any moment, and the same command imports what is missing.
"""

import hashlib
import json
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final, TypeAlias

from rich.console import Console

from ml_backend.config import Settings, checked_address
from ml_backend.demo.summary import View
from ml_backend.doctor.checks import CheckContext, connect_notes
from ml_backend.errors import BackendError, ImageError, QueueError, SettingsError
from ml_backend.images.dicom import UNKNOWN_VIEW, NotAnImage, known_view
from ml_backend.images.files import RefusedFile, SourceFile, walk
from ml_backend.imports.deidentify import Deidentifier, key_file
from ml_backend.imports.ledger import Ledger, open_ledger
from ml_backend.imports.pictures import Picture, fingerprint, is_shown, read_picture, to_png
from ml_backend.imports.places import Places
from ml_backend.imports.table import Outcome, Tally, open_tally
from ml_backend.label_studio.client import LabelStudioClient, label_studio_version
from ml_backend.label_studio.connect import (
    check_backend_address,
    choose_project,
    connect_project,
    read_project,
    version_note,
)
from ml_backend.label_studio.formats import parse_label_config
from ml_backend.logs import logs_on_stderr
from ml_backend.schemas import PATIENT_KEY, STAGES, is_patient_key, patient_of

LATERAL: Final = frozenset({"LL", "RL", "LATERAL", "LAT"})
MODALITIES: Final = "CR,DX,DR,RG,MG,OT"
"""Radiographs, mammograms, and "other", which says nothing."""

_THREADS, _AHEAD = 2, 6  # files that are rendered at once, and that are in memory at once
_BATCH_FILES, _BATCH_BYTES = 40, 32 * 2**20
_FIELDS: Final = frozenset({"study_date", "view", "modality"})
_IMAGE_SUFFIXES: Final = frozenset(
    {".dcm", ".dicom", ".ima", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".avif"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """The options of ``ml-backend import``; lists are separated by commas, and None is the default."""

    source: str
    title: str | None = None
    project: int | None = None
    label_config: str = "severity"
    url: str = "http://127.0.0.1:9090"
    side: int = 2048
    views: str | None = None
    modalities: str | None = None
    columns: str | None = None
    refuse_burned_in: bool = False
    first_frame: bool = False
    leave_in_place: bool = False
    document_root: Path | None = None
    key_file: Path | None = None
    out: Path = Path("import-state")
    dry_run: bool = False
    json: bool = False


@dataclass(slots=True)
class _Rendered:
    """A file that can become a task.

    Attributes:
        file: its key in the ledger.
        png: to upload; empty where the project has its pixels already, or the file stays at its ``address``.
    """

    file: str
    pixels: str
    png: bytes = b""
    address: str = ""
    fingerprint: bytes = b""
    data: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


Result: TypeAlias = _Rendered | tuple[Outcome, str]


def run_import(options: ImportOptions) -> int:
    """Import files, connect the project, wait for its first order, and print what became of the files.

    Returns:
        The exit status: 1 where a file was refused, or the project could not be connected.

    Raises:
        SettingsError: the source, the project, the label config, the key or a setting cannot be used.
        LabelStudioError: Label Studio refused or does not answer; the same command goes on from there.
    """
    url, number, missing, failed = checked_address(options.url, "--url"), None, "", False
    check_backend_address(url)
    key, source = options.key_file or options.out / "key", Path(options.source)
    places = Places(options.source, options.document_root, (options.out, key)) if options.leave_in_place else None
    if places is not None and source.is_dir():
        places.check(str(source / "any file"))
    console = Console(stderr=options.json)
    with View(console) as view, logs_on_stderr():
        if options.dry_run:
            with open_ledger(None) as ledger:
                tally = take_files(options, view, ledger, places)
        else:
            settings = Settings.load()
            with LabelStudioClient.from_settings(settings) as client:
                release = label_studio_version(client.url)
                view.print(f"Label Studio {release}: {version_note(release)}")
                number = _project(options, client, view)
                # Before the project is read: an import that ends meanwhile would be imported again.
                with open_ledger(options.out) as ledger:
                    target = _Target(client, number, key_file(key))
                    tally = take_files(options, view, ledger, places, target)
                try:
                    missing = _first_order(settings, client, target, url, view)
                except BackendError as error:  # after the table, which took long to make
                    missing, failed = f"{error}; then the same command again goes on from here", True
        view.clear()
    if options.json:
        print(json.dumps({"project": number, **tally.as_json(), "missing": missing}))  # noqa: T201
    else:
        console.print(tally.table())
    listed = "; nothing was changed" if options.dry_run else f"; all files: {options.out / 'files.csv'}"
    counts = ", ".join(f"{tally[outcome]:,} {outcome}" for outcome in ("taken", "skipped", "refused"))
    console.print(f"{counts}{listed}", markup=False, highlight=False, soft_wrap=True)
    if missing:
        console.print(f"not yet in order: {missing}", markup=False, highlight=False, soft_wrap=True)
    return 1 if tally["refused"] or failed else 0


def take_files(
    options: ImportOptions, view: View, ledger: Ledger, places: Places | None, target: "_Target | None" = None
) -> Tally:
    """Make a task of each image of the source that the target does not hold.

    Args:
        options: of the import.
        view: shows how far it is.
        ledger: of its folder.
        places: of the images that are not uploaded; None to upload.
        target: the project; None for a dry run.

    Returns:
        What became of each file.
    """
    view.step("listing files", 0, None)
    total = sum(1 for _ in _files(options))
    view.step("listing files", total, total)
    with open_tally(options.out / "files.csv" if target else None) as tally:
        try:
            _Import(options, ledger, tally, places, target).take_all(view, total)
        except (BackendError, KeyboardInterrupt):
            view.print(f"stopped after {tally['taken']:,} images; the same command goes on from there")
            raise
        return tally


def _first_order(settings: Settings, client: LabelStudioClient, target: "_Target", url: str, view: View) -> str:
    """Connect the project and wait for its order; returns what is missing."""
    if not target.pixels:
        return "no image was imported, so that the project was not connected"
    for line in connect_project(settings, target.id, url, None, client, profile="best"):
        view.print(line)
    with closing(CheckContext(target.id, url, lambda: settings)) as context:
        for line in connect_notes(context):
            view.print(line)
        return wait_for_order(context, view)


def _project(options: ImportOptions, client: LabelStudioClient, view: View) -> int:
    if (options.project is None) == (options.title is None):
        raise SettingsError(
            "which project? Give either --project N, or --title TITLE, which makes one where there is none"
        )
    config = options.label_config if options.project is None else None
    number, found = choose_project(client, options.project, options.title, config)
    if found:
        view.print(found)
    return number


class _Target:
    """The project that is filled.

    Args:
        client: of Label Studio.
        project_id: of the project.
        keys: which its earlier imports must have used too.

    Attributes:
        keys: of its patients.
        pixels: hashes of the images that it holds.

    Raises:
        SettingsError: it was imported with another key.
    """

    def __init__(self, client: LabelStudioClient, project_id: int, keys: Deidentifier) -> None:
        self._client = client
        self.id = project_id
        self._image_key = parse_label_config(read_project(client, project_id)["label_config"]).image_key
        self.keys = keys
        self._key = keys.patient("which key is this?")
        self.pixels: set[str] = set()
        for meta in client.task_metas(project_id):
            if "pixels" not in meta:
                continue
            self.pixels.add(str(meta["pixels"]))
            if meta.get("key") != self._key:
                raise SettingsError(
                    f"project {project_id} was imported with another key, so that its patients would get second names: "
                    "give the key file of the first import with --key-file, or the folder of its --out"
                )

    def add(self, images: Sequence[_Rendered], places: Places | None) -> None:
        """Make a task of each image; without places they are uploaded."""
        if places is None:
            names = {one.pixels: f"{one.pixels[:32]}.png" for one in images}
            uploads = self._client.upload(self.id, {names[one.pixels]: one.png for one in images})
            uris = {pixels: uploads[name] for pixels, name in names.items()}
        else:
            uris = {one.pixels: places.address(self._client, self.id, one.address) for one in images}
        tasks = [
            {
                "data": {**one.data, self._image_key: uris[one.pixels]},
                "meta": {"pixels": one.pixels, "key": self._key},
            }
            for one in images
        ]
        self._client.import_tasks(self.id, tasks)
        self.pixels |= uris.keys()


class _Import:
    def __init__(
        self, options: ImportOptions, ledger: Ledger, tally: Tally, places: Places | None, target: _Target | None
    ) -> None:
        self._options = options
        self._ledger = ledger
        self._tally = tally
        self._places = places
        self._target = target
        self._keys = target.keys if target else Deidentifier(secrets.token_bytes(32))
        self._views = _names((options.views or "").upper())
        self._modalities = _names((options.modalities or MODALITIES).upper())
        self._columns = _names(options.columns or "")
        self._seen: set[str] = set()  # pixels in this import
        self._batch: dict[str, tuple[str, _Rendered]] = {}
        # What decides whether a file is taken, so that a ledger knows nothing of it when that changes.
        decides = (self._views, self._modalities, options.first_frame, options.refuse_burned_in)
        self._variant = repr(decides).encode()

    def take_all(self, view: View, total: int) -> None:
        with ThreadPoolExecutor(_THREADS) as threads:
            for done, (name, result) in enumerate(_ahead(_files(self._options), self._render, threads)):
                view.step("importing files", done, total)
                if isinstance(result, _Rendered):
                    self._take(name, result)
                else:
                    self._tally.add(result[0], name, result[1])
                size = sum(len(one.png) for _, one in self._batch.values())
                if len(self._batch) >= _BATCH_FILES or size > _BATCH_BYTES:
                    self._flush()
            self._flush()
        view.step("importing files", total, total)

    def _render(self, file: SourceFile) -> Result:
        """The file as a task needs it, or why it is none. Called from several threads."""
        content = b""
        try:
            if self._places is not None:
                self._places.check(file.address)
            content = file.read()
            known = hashlib.sha256(self._variant + content).hexdigest()
            found = self._ledger.find(known)
            if found is not None and self._holds(found[0]):
                return _Rendered(known, found[0], notes=found[1])
            if self._places is not None and not is_shown(content):
                self._places.check("")
            picture = read_picture(content, file.name, first_frame=self._options.first_frame)
        except SettingsError as error:
            return "refused", str(error)
        except NotAnImage as error:
            return "skipped", str(error)
        except ImageError as error:
            if _is_no_image(error, file.name, content):
                return "skipped", "no image, by its name and its content"
            return "refused", str(error)
        return self._rendered(known, picture, file)

    def _rendered(self, known: str, picture: Picture, file: SourceFile) -> Result:
        fields = dict(picture.fields) | {_column(name): value for name, value in file.fields.items()}
        fields["view"] = known_view(fields.get("view"))
        if reason := self._unwanted(fields):
            return "skipped", reason
        if picture.burned_in and self._options.refuse_burned_in:
            held = "; it is in the project already: delete its task" if self._holds(picture.pixels) else ""
            return "refused", f"{picture.burned_in}{held}"
        notes = [picture.burned_in] if picture.burned_in else []
        if fields["view"] == UNKNOWN_VIEW:
            notes.append("its view is not known: look whether it is a lateral one")
        data = self._data(fields, notes)
        extra = (name for name in self._columns if name in file.fields and _column(name) not in data)
        data |= {name: file.fields[name] for name in extra}
        data = {name: value for name, value in data.items() if value}
        png = to_png(picture.image, self._options.side) if self._places is None else b""
        return _Rendered(known, picture.pixels, png, file.address, fingerprint(picture.image), data, notes)

    def _unwanted(self, fields: Mapping[str, str]) -> str:
        view, modality = fields.get("view", "").upper(), fields.get("modality", "").upper()
        if modality and "ANY" not in self._modalities and modality not in self._modalities:
            return f"modality {modality}: name it in --modalities to take it"
        if view and (view not in self._views if self._views else view in LATERAL):
            return f"view {view}: name it in --views to take it"
        return ""

    def _data(self, fields: Mapping[str, str], notes: list[str]) -> dict[str, str]:
        """What of a file a task holds beside its image."""
        patient = patient_of(fields.get(PATIENT_KEY)) or ""
        try:
            date = self._keys.date(fields.get("study_date", ""), patient)
        except ValueError as error:
            date = ""
            notes.append(str(error))
        return {PATIENT_KEY: self._keys.patient(patient), "study_date": date, "view": fields.get("view", "")}

    def _take(self, name: str, one: _Rendered) -> None:
        if one.pixels in self._seen:
            self._tally.add("skipped", name, "the same pixels as another file of this import")
            return
        self._seen.add(one.pixels)
        if one.fingerprint:  # it was rendered now
            patient = one.data.get(PATIENT_KEY, "")
            if patient and self._ledger.has_similar(patient, one.pixels, one.fingerprint, self._is_here):
                one.notes.append("looks like another image of the same patient")
            self._ledger.add(one.file, one.pixels, patient, one.fingerprint, one.notes)
        for note in one.notes:
            self._tally.add("noted", name, note)
        if self._holds(one.pixels):
            self._tally.add("skipped", name, "in the project already")
        else:
            self._batch[one.pixels] = (name, one)

    def _holds(self, pixels: str) -> bool:
        return self._target is not None and pixels in self._target.pixels

    def _is_here(self, pixels: str) -> bool:
        return pixels in self._seen or self._holds(pixels)

    def _flush(self) -> None:
        if self._batch and self._target is not None:
            self._target.add([one for _, one in self._batch.values()], self._places)
        for name, _ in self._batch.values():
            self._tally.add("taken", name)
        self._batch.clear()


def _files(options: ImportOptions) -> Iterator[SourceFile | RefusedFile]:
    """The files of the source, without those of the import itself."""
    source, out = Path(options.source).resolve(), options.out.resolve()
    own = f"{out.relative_to(source)}/" if "://" not in options.source and out.is_relative_to(source) else None
    return (file for file in walk(options.source) if own is None or not file.name.startswith(own))


def _ahead(
    files: Iterable[SourceFile | RefusedFile],
    work: Callable[[SourceFile], Result],
    threads: ThreadPoolExecutor,
) -> Iterator[tuple[str, Result]]:
    """Do the work for a few files ahead; yields their names and the results, in their order."""
    waiting: deque[tuple[str, Future[Result] | Result]] = deque()
    for file in files:
        if isinstance(file, RefusedFile):
            waiting.append((file.name, ("refused", file.reason)))
        else:
            waiting.append((file.name, threads.submit(work, file)))
        if len(waiting) > _AHEAD:
            yield _done(*waiting.popleft())
    while waiting:
        yield _done(*waiting.popleft())


def _done(name: str, result: Future[Result] | Result) -> tuple[str, Result]:
    return name, result.result() if isinstance(result, Future) else result


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, (name.strip() for name in text.split(","))))


def _column(name: str) -> str:
    return PATIENT_KEY if is_patient_key(name) else name.lower() if name.lower() in _FIELDS else name


def _is_no_image(error: ImageError, name: str, content: bytes) -> bool:
    """Whether a file that is no image lies beside the images, and was never meant to be one."""
    path = PurePosixPath(name.lower())
    if error.kind != "not-an-image" and path.suffix != ".pdf":
        return False
    # Files of a PACS have no suffix, or the end of a UID.
    is_unnamed = not path.suffix or path.suffix[1:].isdigit()
    return path.name.startswith(".") or not (path.suffix in _IMAGE_SUFFIXES or (is_unnamed and not _is_text(content)))


def _is_text(content: bytes) -> bool:
    try:
        content[:512].decode()
    except UnicodeDecodeError:
        return False
    return b"\0" not in content[:512]


def wait_for_order(
    context: CheckContext, view: View, worker_within_s: float = 30.0, round_within_s: float = 120.0
) -> str:
    """Wait until Label Studio serves an order of the project's images.

    Args:
        context: of the project, connected.
        view: shows the stages of the round.
        worker_within_s: seconds within which a worker must answer.
        round_within_s: seconds after which a round must wait or run.

    Returns:
        What is missing; empty where an order is served.
    """
    later = "the first order follows by itself"
    began = busy = time.monotonic()
    while True:
        served = context.client.project(context.project_id).get("model_version")
        if served and (images := context.client.model_versions(context.project_id).get(served)):
            view.print(
                f"Label Studio serves the order {served} of {images:,} images: open the project, and press Label All "
                "Tasks; what was added to the project since follows with a later round"
            )
            return ""
        try:
            status, workers = context.queue.status(context.key), context.queue.workers()
        except QueueError as error:
            return f"whether a worker runs cannot be seen from here ({error}); where one runs, {later}"
        if status.failing and status.last_error is not None:
            return f"the first round failed: {status.last_error.message}; `ml-backend doctor` says more"
        now = time.monotonic()
        if not workers and now > began + worker_within_s:
            return f"no worker answers: start `ml-backend work`, and {later}"
        if status.waiting or status.running:
            busy = now
        elif now > busy + round_within_s:
            return "no round waits or runs: `ml-backend doctor` says why"
        if (progress := status.progress) is not None:
            view.step(STAGES.get(progress.stage, progress.stage), progress.done, progress.total)
        else:
            view.step("waiting for a round", 0, None)
        time.sleep(0.3)
