"""The settings of an installation, from its environment."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from ml_backend.errors import SettingsError
from ml_backend.settings.addresses import ImageHosts
from ml_backend.settings.refusals import explain

__all__ = ["Settings"]

SECRET = frozenset({"redis_url", "label_studio_url", "label_studio_api_key", "basic_auth_pass"})


def _known_hosts(text: str | None) -> str | None:
    ImageHosts.parse(text or "")
    return text


class Settings(BaseSettings):
    """The installation's settings, from ``AL_*`` environment variables (or the keyword arguments of a test)."""

    model_config = SettingsConfigDict(env_prefix="AL_", frozen=True, extra="ignore")

    redis_url: str = Field("redis://127.0.0.1:6379/0", repr=False, description="Redis or Valkey that carries the queue")
    data_dir: Path = Field(
        Path("data"), description="folder of rounds, checkpoints and caches; shared by server and worker"
    )
    label_studio_url: str | None = Field(
        None,
        description="where this backend reaches Label Studio; "
        "default: the hostname that Label Studio sends, trusted only where callers need a password",
    )
    label_studio_api_key: SecretStr | None = Field(
        None, description="personal access token (or legacy token) of a Label Studio user of the project"
    )
    basic_auth_user: str | None = Field(
        None, min_length=1, description="user name that callers must give; unset: no authentication"
    )
    basic_auth_pass: SecretStr | None = Field(None, min_length=1, description="password that callers must give")
    image_hosts: Annotated[str | None, AfterValidator(_known_hosts)] = Field(
        None,
        description="hosts besides Label Studio that images may come from (host or host:port), and private networks "
        "(such as 10.0.0.0/8) that these may lie in, separated by commas",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where the network runs; `cpu` also spares each round the loading of PyTorch"
    )
    cache_gb: float = Field(
        20.0, gt=0.0, description="size in GB that the decoded images may take, and again the features"
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
            SettingsError: names every wrong variable, its value and what is allowed.
        """
        try:
            settings = cls(**overrides)
        except ValidationError as error:
            raise SettingsError(
                explain(error, cls.model_fields, lambda key: f"AL_{key.upper()}", secret=SECRET)
            ) from None
        if (settings.basic_auth_user is None) != (settings.basic_auth_pass is None):
            raise SettingsError("AL_BASIC_AUTH_USER and AL_BASIC_AUTH_PASS go together: set both or neither")
        return settings

    @property
    def allowed_image_hosts(self) -> ImageHosts:
        """``image_hosts``, read."""
        return ImageHosts.parse(self.image_hosts or "")

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must never be told, word for word; passwords also as they are spelt inside an address."""
        found = [key.get_secret_value() for key in (self.label_studio_api_key, self.basic_auth_pass) if key]
        for address in filter(None, (self.redis_url, self.label_studio_url)):
            try:
                spelt = urlsplit(address).password
            except ValueError:  # no address at all: who connects says so
                continue
            found += [spelt, unquote(spelt)] if spelt else []
        return tuple(dict.fromkeys(found))
