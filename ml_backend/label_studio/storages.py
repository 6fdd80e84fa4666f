"""Connects a bucket to a project of Label Studio, which then serves its images without a copy of them."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from ml_backend.errors import LabelStudioError, RequestRefused, SettingsError
from ml_backend.label_studio.client import LabelStudioClient

log = structlog.get_logger(__name__)


class _Kind(NamedTuple):
    resource: str  # of Label Studio's API
    scheme: str  # of an image's address in Label Studio
    bucket: str  # field that holds the bucket
    keys: Mapping[str, tuple[str, ...]]  # field -> variables of the provider's own tools, the first that is set counts


_S3: Final = _Kind(
    "s3",
    "s3",
    "bucket",
    {
        "aws_access_key_id": ("AWS_ACCESS_KEY_ID",),
        "aws_secret_access_key": ("AWS_SECRET_ACCESS_KEY",),
        "region_name": ("AWS_REGION", "AWS_DEFAULT_REGION"),
        "s3endpoint": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    },
)
_GOOGLE: Final = _Kind("gcs", "gs", "bucket", {"google_application_credentials": ("GOOGLE_APPLICATION_CREDENTIALS",)})
_AZURE: Final = _Kind(
    "azure",
    "azure-blob",
    "container",
    {"account_name": ("AZURE_STORAGE_ACCOUNT_NAME",), "account_key": ("AZURE_STORAGE_ACCOUNT_KEY",)},
)
# Scheme of fsspec, or of Label Studio -> the storage.
_KINDS: Final = {"s3": _S3, "gs": _GOOGLE, "gcs": _GOOGLE, "az": _AZURE, "abfs": _AZURE, "azure-blob": _AZURE}


def stored_address(uri: str) -> str:
    """The address of an object as a task of Label Studio holds it; fsspec's scheme of Azure is another.

    Raises:
        SettingsError: Label Studio has no such storage.
    """
    kind, bucket, path = _parts(uri)
    return f"{kind.scheme}://{bucket}/{path}"


def connect_storage(
    client: LabelStudioClient,
    project_id: int,
    uri: str,
    *,
    presign: bool = False,
    environ: Mapping[str, str] = os.environ,
) -> int:
    """Connect a bucket as a source storage, unless the project has this one.

    Label Studio stores the keys that the environment holds, and the log names their variables; without any it uses its
    own. The storage cannot be synchronized: Label Studio would make a second task for every object that a task holds
    already.

    Args:
        client: of a user who may change the project.
        project_id: the project.
        uri: ``s3://bucket/prefix``, ``gs://...``, ``az://container/...``; the prefix may be empty, and is only checked
            to hold an object. Tasks may hold any object of the bucket.
        presign: whether Label Studio redirects browsers and this backend to the bucket, which ``AL_IMAGE_HOSTS`` must
            allow then, instead of passing the files on.
        environ: with the keys in the variables that boto3, s3fs, gcsfs and adlfs read.

    Returns:
        The storage's id.

    Raises:
        SettingsError: Label Studio has no such storage, a file of keys cannot be read, or a key expires soon.
        LabelStudioError: Label Studio cannot list the bucket, or does not respond.
    """
    kind, bucket, prefix = _parts(uri)
    fields = {field: _first(environ, names) for field, names in kind.keys.items()}
    wanted = {kind.bucket: bucket, "prefix": prefix.rstrip("/") or None, "presign": presign}
    same = wanted | ({"s3_endpoint": endpoint} if (endpoint := fields.get("s3endpoint")) else {})
    for row in client.storages(kind.resource, project_id):
        if {name: row.get(name) or None for name in same} == {name: value or None for name, value in same.items()}:
            return int(row["id"])
    if kind is _S3 and environ.get("AWS_SESSION_TOKEN"):
        raise SettingsError(
            "AWS_SESSION_TOKEN is set: its key expires within hours, and then no image is shown. Give a key of its own "
            "that may only read (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), or connect the storage in Label Studio"
        )
    if stored := [name for names in kind.keys.values() for name in names if environ.get(name)]:
        log.info("Label Studio stores what these variables hold, for all images of the bucket", variables=stored)
    given = {field: value for field, value in (wanted | fields).items() if value is not None}
    try:
        return int(client.add_storage(kind.resource, project_id, given | {"synchronizable": False})["id"])
    except RequestRefused as error:
        variables = ", ".join(name for names in kind.keys.values() for name in names)
        of_another = (
            ". Of a server that is not Amazon's it hides the reason, and it refuses a private address unless "
            "LABEL_STUDIO_S3_ENDPOINT names that one where Label Studio runs"
        )
        raise LabelStudioError(
            f"Label Studio cannot read {kind.scheme}://{bucket}/{prefix}: {error}. Check the bucket, that the "
            f"prefix holds an object, and the keys ({variables}){of_another if 's3endpoint' in given else ''}"
        ) from error


def _parts(uri: str) -> tuple[_Kind, str, str]:
    """The storage, the bucket and the path of an address."""
    scheme, colon, rest = uri.partition("://")
    if not colon or scheme not in _KINDS or not rest.strip("/"):
        raise SettingsError(
            f"{uri!r} is no bucket: expected s3://bucket/prefix, gs://bucket/prefix or az://container/prefix"
        )
    bucket, _, path = rest.partition("/")
    # adlfs also reads container@account.dfs.core.windows.net.
    return _KINDS[scheme], bucket.partition("@")[0] if _KINDS[scheme] is _AZURE else bucket, path


def _first(environ: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    value = next((environ[name] for name in names if environ.get(name)), None)
    if value is None or names != ("GOOGLE_APPLICATION_CREDENTIALS",):
        return value
    try:
        return Path(value).read_text()  # Label Studio takes the content of the file
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise SettingsError(f"{names[0]}={value!r} cannot be read: {why}: name the file with the key") from error
