"""A form for the owner's options, and a preview of what each strategy would choose. Torch-free.

The options stay where ``connect`` writes them: in the connection of the project in Label Studio.
"""

import json
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Final

import structlog
from flask import Response, request
from pydantic import AwareDatetime, TypeAdapter, ValidationError

from ml_backend.analytics.history import PREVIEWS, SHOWN_PREVIEW, ImageInsight, StrategyPreviews
from ml_backend.analytics.overview import Analysis, newest_record, reason, served_round
from ml_backend.config import ProjectOptions
from ml_backend.errors import BackendError, LabelStudioError, StorageError, UnknownProject, Unreachable
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.connect import ONE_CONNECTION, TITLE, update_options
from ml_backend.label_studio.formats import OptionsForm, parse_label_config
from ml_backend.label_studio.publisher import large_reserve
from ml_backend.registry import STRATEGIES, StrategySpec, few_passes
from ml_backend.schemas import Connection, FrozenModel
from ml_backend.server.context import context, relative_url, user_name
from ml_backend.server.images_page import WallImage, answered_since, pictures_of
from ml_backend.server.status import config_of
from ml_backend.server.views import find_project, pages, render
from ml_backend.storage import ProjectStore

FEW_LABELS: Final = 100
"""Labels up to which ``uherding`` is recommended; docs/experiments.md has the measurement."""
FIELDS: Final = tuple(name for name in OptionsForm.model_fields if name not in ("token", "shown"))
CHANGES: Final = "option-changes"
"""Name of the record ``OptionChanges`` of a project."""
KEPT_CHANGES: Final = 500
PATIENCE_S: Final = 0.0  # the owner waits for the answer

SAID: Final = {
    "done": "Saved. A strategy or holdout share takes effect at once where the last network can rank again, the rest "
    "with the next round.",
    "same": "Nothing was changed: these are the present values.",
}
_SHOWN: Final = TypeAdapter(dict[str, str])

log = structlog.get_logger()


class OptionChange(FrozenModel):
    """A change that was made on the page.

    Attributes:
        by: login of the backend; ``the page`` where it needs none.
        before: value of each changed option, in words.
        after: likewise.
    """

    at: AwareDatetime
    by: str
    before: dict[str, str]
    after: dict[str, str]


class OptionChanges(FrozenModel):
    """Changes of a project's options, oldest first."""

    changes: tuple[OptionChange, ...] = ()


@pages.get("/projects/<key>/options")
def options(key: str) -> Response:
    """A form for the owner's options, and the first images by each strategy."""
    connection, project = find_project(key)
    said = next((words for name, words in SAID.items() if name in request.args), None)
    return _form(connection, project, said=said)


@pages.post("/projects/<key>/options")
def change_options(key: str) -> Response:
    """Change options of a project; the body is ``OptionsForm``."""
    connection, project = find_project(key)
    form = OptionsForm(
        **{name: request.form[name].strip() for name in OptionsForm.model_fields if name in request.form}
    )
    form = form.model_copy(update={"control_share": form.control_share.replace(",", ".")})  # as in 0,1
    context().tokens.require(key, "options", form.token)
    given = {name: getattr(form, name) for name in FIELDS}
    try:
        # What was not touched here may have changed elsewhere since the form was opened.
        shown = _SHOWN.validate_json(form.shown)
        touched = {name: text for name, text in given.items() if text != shown.get(name)}
        mistakes, changed = _change(connection, project, touched)
    except ValidationError:
        return _form(connection, project, given, {"": "shown: expected a JSON object of texts"}, status=400)
    except BackendError as error:
        log.warning("options not changed", error=str(error))
        why = "The details say why; your operator can correct it."
        if isinstance(error, Unreachable):
            why = "Label Studio does not answer. Your values are still below: press “Save” again in a minute."
        status = max(error.http_status, 400)
        return _form(connection, project, given, {"": f"Not saved. {why}"}, details=str(error), status=status)
    if mistakes:
        wrong = {name: f"“{given[name]}” is not possible: {_allowed(name)}." for name in mistakes if name in given}
        return _form(connection, project, given, mistakes | wrong, status=400)
    said = "done" if changed else "same"
    return Response(status=303, headers={"Location": f"{relative_url('pages.options', key=key)}?{said}"})


@cache
def _allowed(name: str) -> str:
    """The values of a field of the form, in words."""
    of = ProjectOptions.model_json_schema()["properties"][name]
    if "enum" in of:
        return f"one of {', '.join(of['enum'])}"
    most = f" to {of['maximum']:g}" if "maximum" in of else ""
    number = "a number" if of.get("type") == "number" else "a whole number"
    return f"{number} from {of.get('minimum', 0):g}{most}{', or all' if 'anyOf' in of else ''}"


def _change(
    connection: Connection, project: ProjectStore, touched: Mapping[str, str]
) -> tuple[dict[str, str], Collection[str]]:
    """Write those of the touched options that differ from the present ones.

    Returns:
        The mistakes by option, where there are any, and the options that were changed: none where there are mistakes.

    Raises:
        BackendError: Label Studio cannot be asked, or refuses.
    """
    settings, key = context().settings, connection.project
    hostname = settings.trusted_hostname(connection.hostname)
    with LabelStudioClient.from_settings(settings, hostname, patience_s=PATIENCE_S) as client:
        row = client.project(key.id)
        if int(datetime.fromisoformat(str(row["created_at"])).timestamp()) != key.created:
            raise UnknownProject(f"project {key} is gone: Label Studio has given its number to another project")
        attributes = parse_label_config(row["label_config"]).attributes
        ours = [one for one in client.backends(key.id) if one.get("title") == TITLE]
        if len(ours) != 1:
            raise LabelStudioError(
                f"the project holds {len(ours)} connections to this backend, and one is needed: "
                + (ONE_CONNECTION if ours else f"run `ml-backend connect --project {key.id}`")
            )
        held: dict[str, object] = dict(ours[0].get("extra_params") or {})
        wanted = {**held, **touched}
        if touched and (mistakes := ProjectOptions.mistakes(wanted, attributes)):
            return mistakes, ()
        now = ProjectOptions.resolve(wanted, attributes)
        before = _values(ProjectOptions.given(held, attributes))
        # In the option's type: "020" is no change of 20.
        changed = {name: getattr(now, name) for name in touched if str(getattr(now, name)) != before[name]}
        if not changed:
            return {}, ()
        update_options(client, settings, key.id, ours[0], held | changed)
    change = OptionChange(
        at=datetime.now(UTC),
        by=user_name(),
        before={name: before[name] for name in changed},
        after={name: str(value) for name, value in changed.items()},
    )
    log.info("options changed", by=change.by, before=change.before, after=change.after)
    try:
        noted = project.project_record(CHANGES, OptionChanges) or OptionChanges()
        project.set_project_record(CHANGES, OptionChanges(changes=(*noted.changes, change)[-KEPT_CHANGES:]))
    except StorageError as error:
        log.warning("a change of options cannot be recorded", error=str(error))
    return {}, changed


def _values(given: Mapping[str, object]) -> dict[str, str]:
    """The options of the form as text, as they were given or by default; also where one of them is a mistake."""
    try:
        checked = ProjectOptions.model_validate(given)
    except ValidationError:
        return {name: str(given.get(name, ProjectOptions.model_fields[name].default)) for name in FIELDS}
    return {name: str(getattr(checked, name)) for name in FIELDS}


def option_changes(project: ProjectStore) -> tuple[OptionChange, ...]:
    """The changes that were made on the page, oldest first; none where the record is damaged."""
    try:
        noted = project.project_record(CHANGES, OptionChanges)
    except StorageError as error:
        log.warning("the changes of options cannot be shown", error=str(error))
        return ()
    return () if noted is None else noted.changes


def _form(
    connection: Connection,
    project: ProjectStore,
    given: Mapping[str, str] | None = None,
    mistakes: Mapping[str, str] | None = None,
    *,
    said: str | None = None,
    details: str = "",
    status: int = 200,
) -> Response:
    configured, mistake = config_of(connection)
    now = None if configured is None else configured.options
    try:
        attributes = parse_label_config(connection.label_config).attributes
    except BackendError:  # which `mistake` names
        attributes = {}
    analysis = project.readings.analysis(Analysis)
    standing = None if analysis is None else analysis.standing
    labels = None if standing is None else sum(standing.labels_per_class.values())
    recommended = "uherding" if labels is None or labels < FEW_LABELS else "entropy"
    values, mistakes = _values(ProjectOptions.given(connection.extra_params, attributes)), dict(mistakes or {})
    page = render(
        "options.html",
        {
            "connection": connection,
            "token": context().tokens.of(str(connection.project), "options"),
            "values": given or values,
            "shown": request.form.get("shown") or json.dumps(values),
            "about": {name: ProjectOptions.model_fields[name].description for name in FIELDS},
            "allowed": {name: _allowed(name) for name in FIELDS if name != "strategy"},
            "strategies": STRATEGIES,
            "labels": labels,
            "recommended": recommended,
            "few_labels": FEW_LABELS,
            "details": details,
            "mistakes": mistakes,
            # A mistake that no field of the form stands for.
            "elsewhere": [text for name, text in mistakes.items() if name not in FIELDS]
            or ([mistake] if mistake else []),
            "said": said,
            "few_passes": few_passes(now.strategy, now.passes, now.batch_size) if now else "",
            "large_reserve": large_reserve(now, standing.left) if now and standing else "",
            "changes": option_changes(project)[::-1],
            **_previews(connection, project, (values["strategy"], recommended)),
            "chosen": values["strategy"],
        },
    )
    page.status_code = status
    return page


def _previews(connection: Connection, project: ProjectStore, begin: tuple[str, ...]) -> dict[str, object]:
    """The first images without an answer by each strategy, these ones first; and why the others have none."""
    newest = newest_record(project, PREVIEWS, StrategyPreviews)
    if newest is None:
        return {"previews": {}, "previews_of": None, "without_preview": dict.fromkeys(STRATEGIES, "none yet")}
    round_id, found = newest
    by = next((one.base or round_id for one in project.summaries()[0] if one.round_id == round_id), round_id)
    gone = answered_since(connection, project)
    first = {
        name: [one for one in found.first[name] if one.image_id not in gone][:SHOWN_PREVIEW]
        for name in dict.fromkeys((*begin, *sorted(found.first)))
        if name in found.first
    }
    pictures = pictures_of(project, (one.image_id for images in first.values() for one in images))
    chosen = None if (shown := served_round(project)) is None else project.head(shown)
    served = {
        one.image_id: f"; no. {one.place} of the served order{', drawn at random' if one.control else ''}"
        for one in ((*chosen.batch, *chosen.behind) if chosen else ())
    }
    return {
        "previews": {
            name: [_previewed(one, name, pictures, served) for one in images] for name, images in first.items()
        },
        "previews_of": round_id,
        "previews_by": by,
        "without_preview": {name: _why_none(spec) for name, spec in sorted(STRATEGIES.items()) if name not in first},
    }


def _why_none(spec: StrategySpec) -> str:
    """Why a round makes no preview of a strategy."""
    if more := sorted(spec.needs - {"probs"}):
        return f"needs {' and '.join(more)} of every image"
    if not spec.target.startswith("ml_backend."):
        return "an added function, which may take long: previewed once a round has ranked by it"
    return "takes minutes" if spec.batch else "needs more passes, or failed: the worker's log says which"


def _previewed(image: ImageInsight, strategy: str, pictures: Mapping[str, str], served: Mapping[str, str]) -> WallImage:
    why = reason(strategy, image) + served.get(image.image_id, "")
    return WallImage(image.image_id, why, None, image.suggestion, image.probs, pictures.get(image.image_id))
