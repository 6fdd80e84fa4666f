"""Models of the requests that Label Studio sends to the server and of the answers, published by ``openapi``.

Unknown fields of a request are ignored: the next version of Label Studio sends more of them.
"""

import re
from datetime import datetime
from hashlib import blake2b
from typing import Annotated, TypeVar

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import from_json

from ml_backend.errors import PayloadError
from ml_backend.schemas import ProjectKey

PROJECT_KEY = r"^[1-9][0-9]{0,17}\.[0-9]{1,18}$"

Number = Annotated[int, Field(ge=1, le=2**63 - 1, strict=True)]
Count = Annotated[int, Field(ge=0, le=2**63 - 1, strict=True)]


def parse_key(value: object) -> ProjectKey:
    """Read a project's key; raises ValueError for another form."""
    # At most 18 digits: more than an id or a time needs, and short enough for the name of a folder.
    if not (isinstance(value, str) and re.fullmatch(PROJECT_KEY, value)):
        raise ValueError(f"a project is named '<id>.<unix seconds>', got {str(value)[:60]!r}")
    return ProjectKey.parse(value)


Key = Annotated[
    ProjectKey,
    PlainValidator(parse_key),
    WithJsonSchema({"type": "string", "pattern": PROJECT_KEY, "description": "<id>.<unix seconds of its creation>"}),
]

M = TypeVar("M", bound=BaseModel)


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class SetupRequest(_Body):
    """``/setup``: a project and its owner's options.

    The access token of the request is ignored: it is a legacy token, which Label Studio refuses by default.
    """

    project: Key
    label_config: Annotated[str, Field(alias="schema")]
    hostname: Annotated[str, Field(pattern=r"^https?://[^\s/@?#\\]+(/[^\s@?#\\]*)?$", max_length=2000)]
    extra_params: dict[str, object] = {}

    @field_validator("extra_params", mode="before")
    @classmethod
    def _parse_text(cls, value: object) -> object:
        """Label Studio passes on what the owner saved: an object, nothing, or an object as text."""
        if value is None or value == "":
            return {}
        if isinstance(value, str):
            try:
                return from_json(value)
            except ValueError:
                raise ValueError(f'is no JSON object: {value[:80]!r}; expected {{"strategy": "entropy"}}') from None
        return value


class _Task(_Body):
    id: Number


class PredictRequest(_Body):
    """``/predict``: tasks that wait for a prediction."""

    tasks: list[_Task]
    project: Key


class VersionsRequest(_Body):
    """``POST /versions``, as label-studio-ml has it."""

    project: Key


class ProjectRow(_Body):
    """The project of an event: a whole row, except for a deleted project."""

    id: Number
    created_at: AwareDatetime | None = None
    label_config: str | None = None
    # Its toggle "Start model training on annotation submission": 0 is off, n asks Label Studio itself to send
    # START_TRAINING ahead of every nth annotation event (1.23.2: tasks/models.py, update_ml_backend).
    min_annotations_to_start_training: Count | None = None
    total_annotations_number: Count | None = None
    skipped_annotations_number: Count | None = None

    @model_validator(mode="before")
    @classmethod
    def _accept_number(cls, value: object) -> object:
        return {"id": value} if isinstance(value, int) else value

    @field_validator("created_at")
    @classmethod
    def _after_1970(cls, value: datetime | None) -> datetime | None:
        if value is not None and value.timestamp() < 0:
            raise ValueError("must not lie before 1970")
        return value

    @property
    def key(self) -> ProjectKey | None:
        """The project's key; None where the row has no creation time."""
        return None if self.created_at is None else ProjectKey(id=self.id, created=int(self.created_at.timestamp()))

    @property
    def annotations(self) -> int | None:
        """Number of annotations with skips, as Label Studio's own trigger counts them."""
        if self.total_annotations_number is None:
            return None
        return self.total_annotations_number + (self.skipped_annotations_number or 0)


class Event(_Body):
    """``/webhook``."""

    action: Annotated[str, Field(min_length=1, max_length=100)]
    project: ProjectRow | None = None
    # ANNOTATIONS_CREATED has its list under `annotation`, ANNOTATIONS_DELETED under `annotations`.
    annotation: dict[str, object] | list[dict[str, object]] | None = None
    annotations: list[dict[str, object]] | None = None
    tasks: list[dict[str, object]] | None = None

    @property
    def changed(self) -> int:
        """Number of annotations, or of tasks, that the event is about; at least 1."""
        items = self.annotation if isinstance(self.annotation, list) else self.annotations or self.tasks
        return max(1, len(items or ()))

    @property
    def identity(self) -> str | None:
        """Identifies the event; None where it names no items."""
        one = self.annotation
        listed = one if isinstance(one, list) else self.annotations or self.tasks
        items = [one] if isinstance(one, dict) else listed
        if not items or self.project is None:
            return None
        named = [(item.get("id"), item.get("updated_at")) for item in items]
        return blake2b(repr((self.action, self.project.annotations, named)).encode(), digest_size=16).hexdigest()

    @property
    def annotated(self) -> int:
        """Number of new tasks that were imported with annotations, for which no other event is sent."""
        return sum(bool(task.get("total_annotations")) for task in self.tasks or ())

    def require_project(self) -> ProjectRow:
        """The project's row.

        Raises:
            PayloadError: the event has none.
        """
        if self.project is None:
            raise PayloadError(f"{self.action} names no project: switch on 'Send payload' of the webhook")
        return self.project


class Form(_Body):
    """A button of a project's page, with the token of the page."""

    token: str


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class ErrorAnswer(_Answer):
    """An error: the value seen, the value expected, the way out."""

    error: str


class HealthAnswer(_Answer):
    """``/health``: the server is up; ``degraded`` lists what does not work."""

    status: str = "UP"
    degraded: list[str] = []


class SetupAnswer(_Answer):
    """``/setup``: the version that Label Studio shows for the backend."""

    model_version: str


class PredictAnswer(_Answer):
    """``/predict``: one prediction a task, in their order."""

    results: list[dict[str, object]]


class WebhookAnswer(_Answer):
    """``/webhook``: the outcome of the event."""

    model_config = ConfigDict(frozen=True, extra="allow")

    action: str
    outcome: str


class VersionsAnswer(_Answer):
    """``/versions``: the model versions that are served now."""

    versions: list[str]


class StatusAnswer(_Answer):
    """``/``: the state of every project."""

    status: str = "UP"
    projects: list[dict[str, object]]


class ProjectAnswer(_Answer):
    """``/projects/<key>``: one project, its rounds and the images that the last one chose."""

    model_config = ConfigDict(frozen=True, extra="allow")

    project: str


class RoundAnswer(_Answer):
    """``/projects/<key>/rounds/<round>``: one round, and the images that it chose."""

    model_config = ConfigDict(frozen=True, extra="allow")

    project: str
    round: str


def parse_body(model: type[M], body: bytes) -> M:
    """Read a request's body.

    Raises:
        PayloadError: no JSON, or other types than Label Studio sends; names each place.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        mistakes = error.errors(include_url=False, include_context=False)
        places = "; ".join(
            f"{'.'.join(map(str, m['loc'])) or 'body'}: {m['msg'].removeprefix('Value error, ')}" for m in mistakes[:5]
        )
        more = f" (and {len(mistakes) - 5} more)" if len(mistakes) > 5 else ""
        raise PayloadError(f"this is not what Label Studio sends: {places}{more}") from None
