"""Checks of Label Studio, of our rights there, and of what the project asks its readers."""

from ml_backend.doctor.case import Case
from ml_backend.doctor.check import Check, Outcome, failed, fine
from ml_backend.errors import RequestRefused, SettingsError
from ml_backend.label_studio.formats import shown
from ml_backend.label_studio.version import TESTED, label_studio_version
from ml_backend.settings import ProjectOptions

__all__ = ["STUDIO_CHECKS"]

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
