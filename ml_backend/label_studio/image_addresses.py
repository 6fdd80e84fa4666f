"""Addresses of images as tasks hold them: plain, decoded where the image stands in them, and their ways out."""

import base64
import re
from typing import Final
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from ml_backend.settings import is_data_uri, shown_address

__all__ = ["STORAGES", "former_home", "is_file", "plain_address", "read_data_uri", "same_home", "way_out"]

# Scheme -> the storage's name in Label Studio's dialog.
STORAGES: Final = {"s3": "Amazon S3", "gs": "Google Cloud Storage", "azure-blob": "Microsoft Azure"}
# Label Studio's own addresses that serve files (1.23.2: io_storages/urls.py, data_import/urls.py).
_FORMER: Final = re.compile(r"/data/(upload|local-files)/.*|/storage-data/.+|/(tasks|projects)/\d+/(resolve|presign)/?")
_FILES: Final = re.compile(r"/(data|storage-data)/.+|/(tasks|projects)/\d+/(resolve|presign)/?")
_NOT_BASE64: Final = re.compile(rb"[^A-Za-z0-9+/]")

_LOCAL_FILES: Final = (
    "upload the images, or serve their folder: set LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and "
    "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT=/the/folder where Label Studio runs, add a storage of type Local files, "
    "and write /data/local-files/?d=path/below/that/folder"
)
_WAYS: Final = (
    "wanted is a path that begins with / (an upload), http(s)://, data:, or the URI of a storage that is connected in "
    f"Label Studio ({', '.join(f'{scheme}://' for scheme in STORAGES)})"
)

# How an address that leads to no image begins -> why, and what to write instead.
_WAYS_OUT: Final = tuple(
    (re.compile(start, re.IGNORECASE), words)
    for start, words in (
        (
            r"(?:iVBORw0KGgo|/9j/|R0lGOD|UklGR)[A-Za-z0-9+/\s]{40,}={0,2}\Z",
            "is an image in base64 without its head: write data:image/png;base64, before it",
        ),
        (
            r"[a-z]:[\\/]|\\\\|~/|file:",
            f"is a path on a disk, which neither Label Studio nor a browser may open: {_LOCAL_FILES}",
        ),
        (r"//|[\w-]+(?:\.[\w-]+)*:\d+(?:/|\Z)", "names no scheme: write https:// or http:// before the host"),
        (
            r"/",
            "is no file of Label Studio: its key is sent to /data/..., /storage-data/... and /tasks/N/resolve/ alone; "
            f"if this is a path on a disk, {_LOCAL_FILES}",
        ),
        (r"blob:", "exists only in the browser tab that made it: upload the image"),
        (r"s3[an]:", "is not how Label Studio writes this storage: begin it with s3://"),
        (r"gcs:", "is not how Label Studio writes this storage: begin it with gs://"),
        (
            r"(?:az|azure|wasbs?|abfss?|adl):",
            "is not how Label Studio writes this storage: write azure-blob://container/path",
        ),
        (r"(?:data|storage-data|tasks|projects)/", "lacks its first slash: begin it with /"),
    )
)


def plain_address(uri: str) -> str:
    """The address as a browser reads it: without blanks around it and line breaks in it, its scheme in small letters.

    Source:
        https://url.spec.whatwg.org, "basic URL parser", steps 1 to 3.
    """
    stripped = re.sub(r"[\t\r\n]", "", uri.strip("".join(map(chr, range(33)))))
    scheme, colon, rest = stripped.partition(":")
    if not colon or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]+", scheme):
        return stripped
    scheme = scheme.lower()
    if scheme in ("http", "https") and re.match(r"[\\/]{2}", rest):
        # Of a web address, a browser takes backslashes before the query for slashes.
        path, mark, query = rest.partition("?")
        rest = path.replace("\\", "/") + mark + query
    return f"{scheme}:{rest}"


def is_file(path: str) -> bool:
    """Whether a path of Label Studio is one of its files, however its dots and slashes are written."""
    bare = re.split(r"[?#]", path, maxsplit=1)[0]
    decoded = unquote(unquote(bare)).replace("\\", "/")
    return _FILES.fullmatch(bare) is not None and not {".", ".."} & set(decoded.split("/"))


def same_home(uri: str, home: str) -> str | None:
    """The path of ``uri`` below ``home``, with its query; None where it leads elsewhere.

    Of the usual ports, ``http`` and ``https`` are one home: a browser asks for images by the page's scheme.
    """
    try:
        there, here = urlsplit(uri), urlsplit(home)
    except ValueError:  # an IPv6 address without its end
        return None
    if there.scheme not in ("http", "https") or _origin(there.scheme, there.netloc) != _origin(
        here.scheme, here.netloc
    ):
        return None
    path = uri.split("://", 1)[1][len(there.netloc) :]
    prefix = here.path.rstrip("/")
    return path.removeprefix(prefix) if path.startswith(f"{prefix}/") else None


def former_home(uri: str) -> str:
    """What to do where an address elsewhere looks like one of Label Studio; empty where it does not."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        return ""
    if _FORMER.fullmatch(parts.path) is None:
        return ""
    path = shown_address(f"{parts.path}?{parts.query}" if parts.query else parts.path)
    return (
        f". If {parts.netloc.rpartition('@')[2]} is a former address of Label Studio, write {path} in the task, "
        "without the host (readers' browsers find it then, too), or import the images again"
    )


def _origin(scheme: str, netloc: str) -> tuple[str, str]:
    host = netloc.lower()
    usual = host.removesuffix(":80" if scheme == "http" else ":443")
    explicit = re.search(r":\d+$", usual)
    return (scheme if explicit else "", usual)


def way_out(uri: str) -> str:
    """Why an address leads to no image, and what to write instead.

    Args:
        uri: plain, and none of http(s)://, data:, of a storage, or a path of Label Studio's files.
    """
    for start, words in _WAYS_OUT:
        if start.match(uri):
            return words
    if re.match(r"[a-z][a-z0-9+.-]+:", uri):
        return f"is of {uri.partition(':')[0]}:, which is not read: {_WAYS}"
    host = "; where it begins with a host, write https:// before it" if re.match(r"[\w-]+(\.[\w-]+)+[:/]", uri) else ""
    return f"begins nowhere: {_WAYS}. For files on a disk, {_LOCAL_FILES}{host}"


def read_data_uri(uri: str) -> bytes:
    """What stands in a data URI, in every spelling that browsers take.

    The media type is not looked at: the decoder goes by the bytes.

    Raises:
        ValueError: it has no comma, or its base64 holds something else; says what to do.

    Source:
        https://fetch.spec.whatwg.org/#data-urls and https://infra.spec.whatwg.org/#forgiving-base64-decode.
    """
    if not is_data_uri(uri):
        raise ValueError("is no data URI")
    head, comma, body = plain_address(uri).partition("#")[0].removeprefix("data:").partition(",")
    if not comma:
        raise ValueError("has no comma before its content: write data:image/png;base64,...")
    content = unquote_to_bytes(body)
    if re.search(r"; *base64$", head.strip(), re.IGNORECASE) is None:
        return content
    text = re.sub(rb"[\t\n\f\r ]", b"", content)
    if len(text) % 4 == 0:
        text = re.sub(rb"={1,2}$", b"", text)
    if (odd := _NOT_BASE64.search(text)) is not None:
        raise ValueError(
            f"holds {odd[0].decode('latin-1')!r} as character {odd.start() + 1} of its base64, which no browser reads: "
            "encode the file anew, with A-Z, a-z, 0-9, + and /"
        )
    if len(text) % 4 == 1:
        raise ValueError("is cut off: its base64 lacks characters at its end; encode the file anew")
    return base64.b64decode(text + b"=" * (-len(text) % 4))
