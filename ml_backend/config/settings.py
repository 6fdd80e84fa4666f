"""Settings of the installation, from the environment, and options of a project, its owner's choice.

Every wrong name and value is reported at once, with where it came from and what is allowed.
"""

import ipaddress
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from ml_backend.config.network import check_network
from ml_backend.errors import SettingsError, did_you_mean
from ml_backend.registry import STRATEGIES, plugins, strategy_spec
from ml_backend.schemas import ColdStart


def explain(
    error: ValidationError,
    known: Iterable[str],
    spell: Callable[[str], str],
    origin: Mapping[str, str] | None = None,
    secret: Set[str] = frozenset(),
) -> str:
    """One line a mistake: the key, the value seen, what is allowed; see ``explained``."""
    return "; ".join(explained(error, known, spell, origin, secret).values())


def explained(
    error: ValidationError,
    known: Iterable[str],
    spell: Callable[[str], str],
    origin: Mapping[str, str] | None = None,
    secret: Set[str] = frozenset(),
) -> dict[str, str]:
    """The mistake about each key: the key, the value seen, what is allowed.

    Args:
        error: of a model without models in it.
        known: the model's keys.
        spell: turns a key of the model into its name outside.
        origin: where the value of a key came from, where there are several sources.
        secret: keys whose values are not repeated.
    """
    lines: dict[str, str] = {}
    for mistake in error.errors():
        if mistake["type"] == "default_factory_not_called":  # a consequence of the others
            continue
        key = str(mistake["loc"][0])
        name = _shortened(spell(key))
        source = f" (from {origin[key]})" if origin and key in origin else ""
        if mistake["type"] == "extra_forbidden":
            lines[key] = (
                f"{name}{source}: no such option{did_you_mean(key, known) or '; known are ' + ', '.join(known)}"
            )
            continue
        # A union reports one mistake per member: gather them in one line.
        wanted = mistake["msg"].removeprefix("Value error, ")
        if mistake["type"] == "literal_error":
            wanted += did_you_mean(str(mistake["input"]), re.findall("'([^']*)'", mistake["ctx"]["expected"]))
        if key in lines:
            lines[key] += f", or {wanted[0].lower()}{wanted[1:]}"
        else:
            seen = "(not shown)" if key in secret else _shortened(repr(mistake["input"]))
            lines[key] = f"{name}={seen}{source}: {wanted[0].lower()}{wanted[1:]}"
    return lines


def _shortened(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


SHOWN = 200  # characters of an address
_DATA = re.compile(r"[\x00-\x20]*" + r"[\t\r\n]*".join("data:"), re.IGNORECASE)

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class ImageHosts:
    """Hosts that images may come from, in addition to Label Studio.

    Attributes:
        hosts: names or addresses, each with its port, or None for the usual one of http and https.
        networks: private ones that these hosts may lie in; public addresses need no entry.
    """

    hosts: frozenset[tuple[str, int | None]] = frozenset()
    networks: tuple[Network, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``host``, ``host:port``, ``[address]:port`` and ``network/length``, separated by commas.

        Raises:
            ValueError: names the first entry that is none of these.
        """
        hosts: set[tuple[str, int | None]] = set()
        networks: list[Network] = []
        for entry in filter(None, map(str.strip, text.split(","))):
            if "/" in entry:
                networks.append(_network(entry))
                continue
            found = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([\w.-]+))(?::(\d{1,5}))?", entry)
            if found is None:
                raise ValueError(
                    f"{entry!r} is not a host; expected host, host:port or 10.0.0.0/8, separated by commas"
                )
            host = (found[1] or found[2]).lower()
            hosts.add((host, int(found[3]) if found[3] else None))
            # An address that is written out is meant, however private it is.
            if re.fullmatch(r"[\d.]+", host) or found[1]:
                networks.append(_network(host))
        return cls(frozenset(hosts), tuple(networks))

    def allows(self, host: str, port: int, *, usual: bool) -> bool:
        """Whether images may come from a host; ``usual``: the port is the one that its scheme has by itself."""
        return (host.lower(), port) in self.hosts or (usual and (host.lower(), None) in self.hosts)

    def reaches(self, address: str) -> bool:
        """Whether an address may be connected to: a public one, or one in an allowed network."""
        ip = ipaddress.ip_address(address.partition("%")[0])
        ip = getattr(ip, "ipv4_mapped", None) or ip
        public = ip.is_global and not ip.is_multicast
        return public or any(ip in network for network in self.networks)


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise ValueError(f"{error}; wanted is a network such as 10.0.0.0/8") from None


def is_data_uri(uri: str) -> bool:
    """Whether an address is a data URI, as browsers read it: in any case, with blanks before it."""
    return _DATA.match(uri) is not None


def checked_address(url: str, setting: str = "AL_LABEL_STUDIO_URL") -> str:
    """The address of a server, without a slash at the end.

    Raises:
        SettingsError: it cannot be one; names the setting, and repeats no user or password.
    """
    url = url.strip()
    # Its user and password before anything that repeats the address.
    if "@" in url:
        where = "AL_LABEL_STUDIO_API_KEY" if setting == "AL_LABEL_STUDIO_URL" else "AL_BASIC_AUTH_USER and _PASS"
        raise SettingsError(
            f"{setting} holds a user or a password; expected http://host:port, with the secret in {where}"
        )
    try:
        parts = urlsplit(url)
        # A port that is none shows when it is asked for.
        sound = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if not sound or parts.query or parts.fragment or re.search(r"\s", url):
        raise SettingsError(f"{setting} is {url!r}; expected http://host:port or https://host")
    return url.rstrip("/")


def shown_address(uri: str) -> str:
    """An image's address for a report, a log or an error: without what lets its reader in.

    A presigned URL carries its signature in the query, and user and password may stand before the host. Of the query
    only ``d`` is kept: in the addresses of Label Studio's local files it is the file's name.
    """
    if is_data_uri(uri):
        return f"{uri.partition(',')[0][:SHOWN]},..."
    if re.match(r"[A-Za-z]:[\\/]", uri):  # a path of Windows, whose drive is no scheme
        return uri if len(uri) <= SHOWN else f"{uri[:SHOWN]}..."
    try:
        parts = urlsplit(uri)
    except ValueError:  # an IPv6 address without its end
        return f"{uri.partition('?')[0].rpartition('@')[2][:SHOWN]}"
    file = parse_qs(parts.query).get("d")
    query = urlencode({"d": file[0]}, safe="/") if file else "..." if parts.query else ""
    shown = parts._replace(netloc=parts.netloc.rpartition("@")[2], query=query, fragment="").geturl()
    return shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}..."


def _variable(name: str) -> str:
    return f"AL_{name.upper()}"


SECRET = frozenset({"redis_url", "label_studio_url", "label_studio_api_key", "basic_auth_pass"})


def _known_hosts(text: str | None) -> str | None:
    ImageHosts.parse(text or "")
    return text


def _stripped(key: SecretStr) -> SecretStr:
    """A key that was copied with blanks or a line break around it."""
    text = key.get_secret_value().strip()
    if text[:1] in {"'", '"'}:
        raise ValueError("is in quotes: leave them away")
    if not re.fullmatch(r"[!-~]*", text):
        raise ValueError("holds a blank or a character that is not ASCII: copy the key once more from Label Studio")
    return SecretStr(text)


def _sendable(text: str) -> str:
    """A user or password that Label Studio, browsers and webhooks send as it was given."""
    if not text:
        raise ValueError("is empty: give one, or unset AL_BASIC_AUTH_USER and AL_BASIC_AUTH_PASS both")
    if text != text.strip():
        raise ValueError("begins or ends with a blank or a line break, which Label Studio cuts off: remove it")
    if control := re.search(r"[\x00-\x1f\x7f-\x9f]", text):
        raise ValueError(f"holds a control character ({control[0]!r}), which Basic authentication does not allow")
    if foreign := [character for character in text if ord(character) > 255]:
        raise ValueError(
            f"holds {'a character' if len(foreign) == 1 else 'characters'} that Label Studio cannot send (it sends "
            "Latin-1): use letters of ASCII or Latin-1, digits and punctuation"
        )
    return text


def _user(text: str) -> str:
    if ":" in text:
        raise ValueError("holds a colon, which ends the user in Basic authentication: choose another user")
    return _sendable(text)


def _password(secret: SecretStr) -> SecretStr:
    _sendable(secret.get_secret_value())
    return secret


class Settings(BaseSettings):
    """The installation's settings, from ``AL_*`` environment variables (or the keyword arguments of a test)."""

    model_config = SettingsConfigDict(env_prefix="AL_", frozen=True, extra="ignore")

    redis_url: Annotated[str, AfterValidator(str.strip)] = Field(
        "redis://127.0.0.1:6379/0", repr=False, description="Redis or Valkey that carries the queue"
    )
    data_dir: Path = Field(
        Path("data"), description="folder of rounds, checkpoints and caches; shared by server and worker"
    )
    label_studio_url: Annotated[str, AfterValidator(str.strip)] | None = Field(
        None,
        description="where this backend reaches Label Studio; "
        "default: the hostname that Label Studio sends, trusted only where callers need a password",
    )
    label_studio_api_key: Annotated[SecretStr, AfterValidator(_stripped)] | None = Field(
        None, description="personal access token (or legacy token) of a Label Studio user of the project"
    )
    basic_auth_user: Annotated[str, AfterValidator(_user)] | None = Field(
        None, description="user name that callers must give; unset: no authentication"
    )
    basic_auth_pass: Annotated[SecretStr, AfterValidator(_password)] | None = Field(
        None, description="password that callers must give"
    )
    image_hosts: Annotated[str | None, AfterValidator(_known_hosts)] = Field(
        None,
        description="hosts besides Label Studio that images may come from (host or host:port), and private networks "
        "(such as 10.0.0.0/8) that these may lie in, separated by commas",
    )
    public_url: Annotated[str, AfterValidator(str.strip)] | None = Field(
        None,
        description="address of this backend's pages in a browser, as `connect` prints it; default: that of `--url`",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where the network runs; `cpu` also spares each round the loading of PyTorch"
    )
    threads: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="threads of PyTorch, BLAS and decoding in a process; default: the cores that affinity and the "
        "container's quota leave it",
    )
    cache_gb: float = Field(
        20.0, gt=0.0, description="size in GB that the decoded images may take, and again the features"
    )
    keep_rounds: Annotated[int, Field(ge=0)] = Field(
        0, description="last rounds of a project that keep the passes of their network; 0: all"
    )
    timeout_s: Annotated[float, Field(gt=0)] = Field(60.0, description="time-out of a request to Label Studio")
    round_timeout_s: Annotated[int, Field(gt=0)] = Field(24 * 3600, description="longest time that a round may take")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="least severe message logged")
    log_format: Literal["auto", "console", "json"] = Field(
        "auto", description="lines for people or for machines; `auto`: JSON, except on a terminal"
    )

    @classmethod
    def load(cls, **overrides: Any) -> Self:
        """Read the environment.

        Raises:
            SettingsError: names every wrong variable, its value and what is allowed. The variables of certificates and
                proxies (``network``) are among them.
        """
        try:
            settings = cls(**overrides)
        except ValidationError as error:
            raise SettingsError(explain(error, cls.model_fields, _variable, secret=SECRET)) from None
        if mistakes := "; ".join(_mistakes(settings)):
            raise SettingsError(mistakes)
        return settings

    def trusted_hostname(self, hostname: str | None) -> str | None:
        """The address that ``/setup`` gives for Label Studio, if it may be sent the API key; else None.

        Without a password anybody may call ``/setup``, and name a host of their own.
        """
        return hostname if self.basic_auth_user else None

    @property
    def allowed_image_hosts(self) -> ImageHosts:
        """``image_hosts``, read."""
        return ImageHosts.parse(self.image_hosts or "")

    @property
    def secrets(self) -> tuple[str, ...]:
        """Secrets that must never be logged or shown; passwords also as they are spelt inside an address."""
        found = [key.get_secret_value() for key in (self.label_studio_api_key, self.basic_auth_pass) if key]
        for address in filter(None, (self.redis_url, self.label_studio_url)):
            try:
                spelt = urlsplit(address).password
            except ValueError:  # no address at all: who connects says so
                continue
            found += [spelt, unquote(spelt)] if spelt else []
        return tuple(dict.fromkeys(found))


def _mistakes(settings: Settings) -> Iterator[str]:
    """What is wrong although every field alone is sound."""
    if (settings.basic_auth_user is None) != (settings.basic_auth_pass is None):
        yield "AL_BASIC_AUTH_USER and AL_BASIC_AUTH_PASS go together: set both or neither"
    if _is_cut_short(settings.redis_url):
        yield (
            "AL_REDIS_URL=(not shown) is not an address: a special character of its password must be written as %XX "
            "(%23 for #, %2F for /, %3F for ?, %5B for [)"
        )
    url = settings.label_studio_url
    page = settings.public_url
    checks: list[Callable[[], object]] = [
        lambda: url and checked_address(url),
        lambda: page and checked_address(page, "AL_PUBLIC_URL"),
        lambda: check_network(url),
    ]
    for check in checks:
        try:
            check()
        except SettingsError as error:
            yield str(error)
            return


def _is_cut_short(url: str) -> bool:
    """Whether an address ends for its reader before its password does."""
    if "@" not in url:
        return False
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return True
    return parts.scheme != "unix" and "@" in parts.path + parts.query + parts.fragment


OPTION_PREFIX = "model_"  # of an option that is an attribute of the Choices tag
ENVIRONMENT, TAG, GIVEN = "environment", "Choices tag", "extra_params"
SOURCES = {TAG: "label config's Choices tag has", GIVEN: "project's connection has"}


def _known_strategy(name: str) -> str:
    return strategy_spec(name).name


StrategyName = Annotated[
    str, AfterValidator(_known_strategy), WithJsonSchema({"type": "string", "enum": list(STRATEGIES)})
]


_OUR_RULES: Final = ("median", "majority", "dawid_skene", "ordinal", "latest")
CONSENSUS_RULES = tuple(dict.fromkeys([*_OUR_RULES, *plugins("consensus")]))
"""Names of the consensus rules, of this package and of installed ones; not imported here."""
NEED_ORDER: Final = ("median", "ordinal")
"""Those for which classes must be ordered."""


def _known_rule(name: str) -> str:
    if name not in CONSENSUS_RULES:
        known = f"known are {', '.join(CONSENSUS_RULES)}{did_you_mean(name, CONSENSUS_RULES)}"
        raise ValueError(f"unknown consensus rule {name!r}: {known}")
    return name


ConsensusName = Annotated[
    str, AfterValidator(_known_rule), WithJsonSchema({"type": "string", "enum": list(CONSENSUS_RULES)})
]


PROFILES: Final[Mapping[str, Mapping[str, object]]] = {
    # The defaults are those of Gabriel et al. 2025 (arXiv:2508.21263).
    "paper": {},
    # docs/experiments.md gives what it gains.
    "best": {"committee": 5, "cold_start": "herding", "min_labels_per_class": 5},
}
"""Options of each profile, where they differ from the defaults."""


class ProjectOptions(BaseModel):
    """Options of a project.

    Set as ``extra_params`` of the connection, else as ``model_<name>`` attributes of the Choices tag, else as
    ``AL_<NAME>`` in the backend's environment, else as the profile sets them, else as the default below.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    profile: Literal["paper", "best"] = Field(
        "paper",
        description="values of the options that are not set: those of the paper, or what has paid since; "
        "`ml-backend connect` sets `best`",
    )
    strategy: StrategyName = Field("entropy", description="acquisition function that ranks the pool")
    batch_size: int = Field(20, ge=1, le=1000, description="images that a round chooses together")
    reserve: int | Literal["all"] = Field(
        80,
        description="ranked images published after the batch, so that readers never run dry; or `all`, for pools of at "
        "most some 2,000 images",
    )
    retrain_after: int = Field(20, ge=1, description="changed annotations that start the next round")
    min_labels_per_class: int = Field(
        2, ge=2, description="labels of two classes from which on a network is trained; no other class is waited for"
    )
    cold_start: ColdStart = Field(
        "random",
        description="order until then: random, the most typical image of every cluster first (`typiclust`), or the "
        "images that represent most of the others (`herding`); with these two, classes with few labels are sought",
    )
    control_share: float = Field(
        0.0,
        ge=0.0,
        le=0.5,
        description="fraction of the published images drawn at random, as a holdout that measures the gain",
    )
    reread_share: float = Field(
        0.0,
        ge=0.0,
        le=0.5,
        description="most images of a batch, as a share, that are labelled ones for another reader; 0: never",
    )
    per_patient: int = Field(
        2, ge=0, description="most images of one patient in a batch, which then has no near-duplicates either; 0: any"
    )
    noise_every: int = Field(
        5, ge=0, description="measure the variation between seeds again every so many trained rounds; 0: never"
    )
    unreadable: str = Field(
        "unreadable",
        description="the choice that means `no label can be given`, by its value or its alias; never a class",
    )
    ignore_classes: tuple[str, ...] = Field(
        default_factory=tuple,
        description="classes that are not learned, by value or alias, separated by commas: their labels are left out "
        "while the option is set",
    )
    ordinal: bool | tuple[str, ...] = Field(
        True,
        description="order of the classes: that of the choices, `false` where they have none, or their names by value "
        "or alias, least severe first, separated by commas",
    )
    consensus: ConsensusName = Field("median", description="rule that turns several readers' answers into a label")
    soft_labels: bool = Field(
        False, description="train on the probability of each class by the rule, where several readers answered"
    )
    ground_truth: Literal["override", "reader", "ignore"] = Field(
        "override",
        description="effect of annotations marked as ground truth, as every imported one is: `override` the readers, "
        "count as one more `reader`'s answer, or `ignore` them",
    )
    annotations_per_task: int = Field(1, ge=1, le=20, description="readers an image is shown to")
    reader_names: bool = Field(False, description="show readers' names on the page of readers, instead of numbers")
    prelabel: bool = Field(
        False,
        description="show readers the predicted class, pre-selected: it biases, and the hotkey of that class clears it",
    )
    passes: int = Field(
        # T networks tell apart log T nats at most: too little for a batch of 20 where T = 50.
        default_factory=lambda chosen: 100 if chosen.get("strategy") == "batch_bald" else 50,
        ge=2,
        le=1000,
        description="stochastic forward passes T; by default 50, and 100 for `batch_bald`",
    )
    committee: int = Field(
        1, ge=1, le=20, description="networks of an ensemble, each validated on other labels; they share the passes"
    )
    dropout: float = Field(0.5, gt=0.0, lt=1.0, description="dropout rate of the head")
    backbone: str = Field(
        "resnet50",
        min_length=1,
        description="network: a name of torchvision's, `timm/` and a name of timm's, or a network for radiographs",
    )
    weights: str = Field(
        "imagenet",
        min_length=1,
        description="`imagenet`: the published weights; `none`; or a file (safetensors or torch)",
    )
    finetune: Literal["auto", "head", "full"] = Field(
        "auto", description="train the head on cached features, or the whole network; auto: full on a GPU"
    )
    loss: Literal["weighted", "unweighted"] = Field(
        "weighted", description="cross-entropy, weighted by inverse class frequency or not"
    )
    retrain: Literal["scratch", "warm"] = Field(
        "scratch", description="train from scratch each round, or continue from the last network: faster, but it drifts"
    )
    epochs: int = Field(
        50, ge=1, description="maximum number of epochs; three times as many if only the head is trained"
    )
    min_epochs: int = Field(
        1,
        ge=1,
        description="epochs before training may stop; three times as many, at least 10, if only the head is trained",
    )
    patience: int = Field(
        3,
        ge=1,
        description="epochs without a lower validation loss before training stops, once it is better than chance",
    )
    learning_rate: float | None = Field(
        None, gt=0.0, description="Adam's learning rate; by default 0.0001, and 0.0003 if only the head is trained"
    )
    weight_decay: float = Field(1e-4, ge=0.0, description="Adam's weight decay")
    train_batch: int = Field(32, ge=2, description="images in a training step")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="precision of the network; auto: bfloat16 on a GPU that supports it natively"
    )
    channels_last: bool = Field(True, description="memory layout in which convolutions are faster")
    image_side: int | None = Field(
        None,
        ge=32,
        le=1024,
        description="side of the network's square input in pixels; by default the network's own, 224 for torchvision's",
    )
    validation_share: float = Field(0.2, gt=0.0, lt=1.0, description="share of the patients kept for validation")
    seed: int = Field(0, ge=0, description="seed of the split, the training, the masks and every tie")

    @model_validator(mode="before")
    @classmethod
    def _of_profile(cls, values: object) -> object:
        if not isinstance(values, Mapping):
            return values
        name = values.get("profile")
        chosen = dict(PROFILES.get(name if isinstance(name, str) else "paper", {}))
        if isinstance(networks := chosen.get("committee"), int):
            # As many networks as the other options allow: a profile never makes them a mistake.
            with suppress(KeyError, TypeError, ValueError):
                networks = max(1, min(networks, int(values["passes"]) // 2))
            chosen["committee"] = 1 if values.get("retrain") == "warm" else networks
        return {**chosen, **values}

    def ordered(self, classes: Sequence[str]) -> bool:
        """Whether the classes have an order; two always have."""
        return self.ordinal is not False or len(classes) == 2

    @field_validator("ignore_classes", "ordinal", mode="before")
    @classmethod
    def _listed(cls, value: object, info: ValidationInfo) -> object:
        """Text is split at its commas; a list, also as JSON in text, may hold names with commas in them."""
        parts = value
        if info.field_name == "ordinal" and (value is None or isinstance(value, bool | str)):
            word = "" if value is None else str(value).strip().casefold()
            if word in {"", "true", "yes", "false", "no"}:
                return word not in {"false", "no"}
            if "," not in word:
                raise ValueError("must be true, false, or the classes, least severe first, with commas between them")
        if isinstance(value, str):
            try:
                parts = json.loads(value) if value.lstrip().startswith("[") else value.split(",")
            except ValueError:
                parts = value.split(",")  # names that begin with a bracket
        if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
            raise ValueError("must be names of classes, with commas between them")
        return tuple(dict.fromkeys(name for part in parts if (name := part.strip())))

    @field_validator("reserve")
    @classmethod
    def _reserve_not_negative(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 0:
            raise ValueError("must be 0 or more, or 'all'")
        return value

    @field_validator("annotations_per_task")
    @classmethod
    def _one_reader(cls, value: int, info: ValidationInfo) -> int:
        if value > 1 and (share := info.data.get("reread_share", 0.0)):
            raise ValueError(
                f"must be 1 with reread_share={share}: Label Studio serves what several readers shall have in random "
                "order; or set reread_share=0"
            )
        return value

    @field_validator("committee")
    @classmethod
    def _two_passes_each(cls, value: int, info: ValidationInfo) -> int:
        if value > 1 and 2 * value > (passes := info.data.get("passes", 2 * value)):
            raise ValueError(
                f"must be at most half of passes, which is {passes}: a network draws two or more; or set committee=1"
            )
        return value

    @field_validator("retrain")
    @classmethod
    def _committees_begin_anew(cls, value: str, info: ValidationInfo) -> str:
        if value == "warm" and (networks := info.data.get("committee", 1)) > 1:
            raise ValueError(
                f"must be scratch with committee={networks}: a warm start goes on from one network; or set committee=1"
            )
        return value

    @field_validator("min_epochs")
    @classmethod
    def _no_more_than_all(cls, value: int, info: ValidationInfo) -> int:
        if value > (epochs := info.data.get("epochs", value)):
            raise ValueError(f"must be at most epochs, which is {epochs}")
        return value

    @classmethod
    def resolve(
        cls,
        extra_params: Mapping[str, object] | None = None,
        attributes: Mapping[str, str] | None = None,
        environ: Mapping[str, str] | None = None,
        spell: Callable[[str], str] | None = None,
    ) -> Self:
        """Merge the three sources, the most specific first, and validate the whole.

        Args:
            extra_params: of the connection; keys are option names.
            attributes: of the Choices tag; only those that begin with ``model_`` count.
            environ: the process environment by default; only ``AL_<NAME>`` of a known option counts.
            spell: an option of ``extra_params`` as its user wrote it, such as ``-o passes``; default: its name, with
                ``extra_params`` as its origin.

        Raises:
            SettingsError: names every wrong key and value, where each came from, and what is allowed.
        """
        merged: dict[str, object] = {}
        origin: dict[str, str] = {}
        for name, layer in cls._layers(extra_params, attributes, environ):
            merged |= layer
            origin |= dict.fromkeys(layer, name)
        try:
            return cls.model_validate(merged)
        except ValidationError as error:
            told = {key: name for key, name in origin.items() if name != ENVIRONMENT and not (spell and name == GIVEN)}

            def spelt(key: str) -> str:
                if spell and origin.get(key) == GIVEN:
                    return spell(key)
                return {ENVIRONMENT: _variable(key), TAG: f"{OPTION_PREFIX}{key}"}.get(origin.get(key, ""), key)

            raise SettingsError(explain(error, cls.model_fields, spelt, told)) from None

    @classmethod
    def mistakes(cls, extra_params: Mapping[str, object], attributes: Mapping[str, str]) -> dict[str, str]:
        """What ``resolve`` would refuse, by option; empty where it accepts all."""
        try:
            cls.model_validate(cls.given(extra_params, attributes))
        except ValidationError as error:
            return explained(error, cls.model_fields, str)
        return {}

    @classmethod
    def given(cls, extra_params: Mapping[str, object], attributes: Mapping[str, str]) -> dict[str, object]:
        """The values that ``resolve`` merges, as they were given and before they are checked."""
        merged: dict[str, object] = {}
        for _, layer in cls._layers(extra_params, attributes, None):
            merged |= layer
        return merged

    @classmethod
    def overridden(
        cls,
        extra_params: Mapping[str, object] | None = None,
        attributes: Mapping[str, str] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> list[str]:
        """A sentence for each ``AL_<NAME>`` of the environment in whose place the project has another value.

        The arguments are those of ``resolve``.
        """
        (_, ours), *others = cls._layers(extra_params, attributes, environ)
        found = {name: (where, layer[name]) for where, layer in others for name in ours if name in layer}
        return [
            f"AL_{name.upper()}={ours[name]} has no effect here: the {SOURCES[where]} {name}={value}"
            for name, (where, value) in found.items()
            if str(value) != str(ours[name])
        ]

    @classmethod
    def _layers(
        cls,
        extra_params: Mapping[str, object] | None,
        attributes: Mapping[str, str] | None,
        environ: Mapping[str, str] | None,
    ) -> list[tuple[str, dict[str, object]]]:
        """The three sources of options with their names, the least specific first."""
        environ = os.environ if environ is None else environ
        tag = {k.removeprefix(OPTION_PREFIX): v for k, v in (attributes or {}).items() if k.startswith(OPTION_PREFIX)}
        return [
            (ENVIRONMENT, {n: environ[v] for n in cls.model_fields if (v := f"AL_{n.upper()}") in environ}),
            (TAG, dict(tag)),
            (GIVEN, dict(extra_params or {})),
        ]
