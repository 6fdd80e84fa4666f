"""The bytes of an image, from the address that its task holds.

Everybody who may import tasks chooses the addresses. So the key is sent to Label Studio alone, and there only to paths
that serve files; other hosts are requested only where the operator allows them; and every redirect is checked like a
first address.
"""

import base64
import hashlib
import re
import time
from typing import Final
from urllib.parse import quote, unquote, unquote_to_bytes, urlsplit

import httpx
from tenacity import Retrying, retry_if_exception, stop_after_attempt, stop_before_delay, wait_exponential, wait_random

from ml_backend.config import ImageHosts, is_data_uri, shown_address
from ml_backend.errors import ImageError, ImageErrorKind, LabelStudioError, RequestRefused
from ml_backend.label_studio.client import LabelStudioClient, Redirected
from ml_backend.label_studio.external_images import BlockedHost, ExternalImageFetcher, FetchError
from ml_backend.schemas import ImageRef

MAX_BYTES = 256 * 2**20  # a chest radiograph has 10 to 40 MB
MAX_REDIRECTS = 5
VERSION_S = 3.0  # a slower host is asked for the file itself in the end
ATTEMPTS, BACKOFF_S = 6, 0.5  # of a host that is overloaded: 15 s of waiting in all
OVERLOADED = frozenset({429, 502, 503, 504})
DENIED = frozenset({400, 401, 403})  # what buckets answer to a signature that they do not accept
WEB = ("http://", "https://")
# Scheme -> the storage's name in Label Studio's dialog.
STORAGES: Final = {"s3": "Amazon S3", "gs": "Google Cloud Storage", "azure-blob": "Microsoft Azure"}
STORAGES_PAGE = "Settings > Cloud Storage"
# Label Studio's own addresses that serve files (1.23.2: io_storages/urls.py, data_import/urls.py).
_FILES: Final = re.compile(r"/(data|storage-data)/.+|/(tasks|projects)/\d+/(resolve|presign)/?")
_FORMER: Final = re.compile(r"/data/(upload|local-files)/.*|/storage-data/.+|/(tasks|projects)/\d+/(resolve|presign)/?")

_KINDS: dict[int, ImageErrorKind] = {
    401: "forbidden",
    403: "forbidden",
    404: "missing",
    408: "timed-out",
    410: "missing",
    413: "too-large",
    424: "forbidden",  # Label Studio's proxy, whatever the bucket answered
    429: "unreachable",
    502: "unreachable",
    503: "unreachable",
    504: "unreachable",
}

# A presigned URL of Amazon S3 (version 4, 2), Google Cloud Storage, Azure.
_SIGNED: Final = re.compile(r"[?&](X-Amz-Signature|Signature|X-Goog-Signature|sig)=")
_LOCAL_FILES: Final = (
    "upload the images, or serve their folder: set LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and "
    "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT=/the/folder where Label Studio runs, add a storage of type Local files, "
    "and write /data/local-files/?d=path/below/that/folder"
)
_EXPECTED: Final = (
    "expected a path that begins with / (an upload), http(s)://, data:, or the URI of a storage that is connected in "
    f"Label Studio ({', '.join(f'{scheme}://' for scheme in STORAGES)})"
)
# Beginning of an address that leads to no image -> the reason, and what to write instead.
_WAYS_OUT: Final = tuple(
    (re.compile(start, re.IGNORECASE), reason)
    for start, reason in (
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
            f"is not a file of Label Studio; if this is a path on a disk, {_LOCAL_FILES}",
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


class LabelStudioImages:
    """Fetches the images of tasks. Satisfies ``images.source.ImageSource``. Safe to share between threads.

    Args:
        client: whose key is sent to Label Studio only.
        hostname: the address that Label Studio gives for itself: tasks of its local storage hold absolute URLs that
            begin so, and this backend may reach it under another name.
        hosts: other hosts that images may come from; none by default.
        max_bytes: size limit of one image.
        timeout_s: time limit in seconds of one image from another host, redirects included.
        fetcher: fetches from these hosts; for tests.
        backoff_s: the first wait in seconds where a host is overloaded; each further one is twice as long.
    """

    def __init__(
        self,
        client: LabelStudioClient,
        hostname: str | None = None,
        *,
        hosts: ImageHosts | None = None,
        max_bytes: int = MAX_BYTES,
        timeout_s: float = 60.0,
        fetcher: ExternalImageFetcher | None = None,
        backoff_s: float = BACKOFF_S,
    ) -> None:
        self._client = client
        self._homes = tuple(url.rstrip("/") for url in (client.url, hostname) if url)
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._backoff_s = backoff_s
        self._fetcher = fetcher or ExternalImageFetcher(hosts or ImageHosts(), max_bytes=max_bytes)

    def fetch(self, image: ImageRef) -> bytes:
        """The encoded image.

        Raises:
            ImageError: this image cannot be fetched; the message repeats no signature or password of its address.
            LabelStudioError: no image can be fetched: Label Studio does not respond, or refuses the key.
        """
        content, kind = (self._inline(image), "") if is_data_uri(image.uri) else self._follow(image)
        if "html" in kind or content[:256].lstrip().lower().startswith((b"<!doctype html", b"<html")):
            raise _error(
                image,
                "is an HTML page, no image: a login or an error page? Give an address that leads to the image itself "
                "without a login, or connect its storage in Label Studio",
            )
        return content

    def cache_key(self, image: ImageRef) -> str:
        """Identifies the image's content in a cache: never by the task id, which Label Studio reuses."""
        if is_data_uri(image.uri):
            return f"data:{hashlib.sha256(image.uri.encode()).hexdigest()}"
        uri = plain_address(image.uri)
        path = self._path(uri)
        # Uploads and storages belong to this Label Studio; an external address is the same for all.
        return uri if uri.startswith(WEB) and path is None else f"{self._client.url} {path or uri}"

    def version(self, image: ImageRef) -> str | None:
        """Version of an external image by its response headers, without its content; it changes with the file.

        Returns:
            Empty where the host sends none, or the image is in Label Studio, which gives every upload a new name;
            None where there was no response in time.
        """
        deadline = time.monotonic() + VERSION_S
        address = plain_address(image.uri)
        for _ in range(MAX_REDIRECTS + 1):
            if not address.startswith(WEB) or self._path(address) is not None:
                return ""
            try:
                response = self._fetcher.get(address, deadline, method="HEAD")
            except FetchError:
                return ""
            except OSError:
                return None
            if response.location is None:
                return response.version
            address = response.location
        return ""

    def close(self) -> None:
        self._fetcher.close()

    def _inline(self, image: ImageRef) -> bytes:
        if len(image.uri) > 3 * self._max_bytes:  # every byte written as %XX
            why = f"holds {len(image.uri)} characters, more than {self._max_bytes} bytes: shrink the image"
            raise _error(image, why)
        try:
            return read_data_uri(image.uri)
        except ValueError as error:
            raise _error(image, str(error)) from None

    def _follow(self, image: ImageRef) -> tuple[bytes, str]:
        """The file and its content type, redirects followed."""
        deadline = time.monotonic() + self._timeout_s
        address = plain_address(image.uri)
        if _storage_of(address) is not None:
            # Label Studio holds the storage's credentials: it passes the file on, or signs the bucket's address of it.
            encoded = quote(base64.urlsafe_b64encode(address.encode()).decode())
            address = f"/tasks/{image.id}/resolve/?fileuri={encoded}"
            try:
                return self._follow_from(image, address, deadline)
            except ImageError as error:
                # The signature may have expired on the way.
                if not (isinstance(error.__cause__, FetchError) and error.__cause__.status in DENIED):
                    raise
        elif not address.startswith((*WEB, "/")) or address.startswith("//"):
            raise _error(image, _way_out(address))
        return self._follow_from(image, address, deadline)

    def _follow_from(self, image: ImageRef, address: str, deadline: float) -> tuple[bytes, str]:
        for _ in range(MAX_REDIRECTS + 1):
            path = self._path(address)
            found = self._from_host(image, address, deadline) if path is None else self._from_label_studio(image, path)
            if not isinstance(found, str):
                return found
            address = found
        raise _error(image, f"was redirected more than {MAX_REDIRECTS} times")

    def _from_host(self, image: ImageRef, address: str, deadline: float) -> tuple[bytes, str] | str:
        """The file and its content type, or the address that it is redirected to."""
        retrying = Retrying(
            stop=stop_after_attempt(ATTEMPTS) | stop_before_delay(deadline - time.monotonic()),
            wait=wait_exponential(self._backoff_s) + wait_random(0, self._backoff_s),
            retry=retry_if_exception(lambda error: isinstance(error, FetchError) and error.status in OVERLOADED),
            reraise=True,
        )
        try:
            response = retrying(self._fetcher.get, address, deadline)
        except (FetchError, OSError) as error:
            why = f"{_redirect(image, address)}{error}{_host_remedy(image, address, error)}{_former_home(address)}"
            raise _error(image, why, error) from error
        return (response.content, response.kind) if response.location is None else response.location

    def _from_label_studio(self, image: ImageRef, path: str) -> tuple[bytes, str] | str:
        """The same for a path of Label Studio."""
        if not is_file(path):
            raise _error(image, f"{_redirect(image, path)}{_way_out(path)}")
        try:
            return self._client.download(path, max_bytes=self._max_bytes)
        except Redirected as redirected:
            return redirected.location
        except RequestRefused as error:
            if error.status == httpx.codes.UNAUTHORIZED:
                raise
            raise _error(image, f"{error}{_remedy(image, path, error.status)}", error) from error
        except LabelStudioError as error:
            if isinstance(error.__cause__, httpx.ConnectError | httpx.ConnectTimeout):
                raise
            raise _error(image, str(error), error) from error
        except httpx.InvalidURL as error:
            raise _error(image, f"is not an address: {error}") from error

    def _path(self, uri: str) -> str | None:
        """The path below Label Studio's address; None where the image is elsewhere."""
        for home in self._homes:
            if (path := same_home(uri, home)) is not None:
                return path
        if not uri.startswith("/") or uri.startswith("//"):
            return None
        # Served under a path, Label Studio writes that path into the URIs of uploads.
        prefix = urlsplit(self._client.url).path
        return uri.removeprefix(prefix) if prefix and uri.startswith(f"{prefix}/") else uri


def _error(image: ImageRef, why: str, cause: Exception | None = None) -> ImageError:
    return ImageError(f"image {image.id} ({shown_address(image.uri)!r}): {why}", _kind(cause))


def _kind(error: BaseException | None) -> ImageErrorKind:
    match error:
        case BlockedHost():
            return "forbidden"
        case RequestRefused() | FetchError() if error.status is not None:
            return _KINDS.get(error.status, "refused")
        case httpx.TransportError():
            return "timed-out" if isinstance(error, httpx.TimeoutException) else "unreachable"
        case OSError():
            return ImageError.kind_of(error)
        case None:
            return "refused"
    return _kind(error.__cause__)


def _redirect(image: ImageRef, address: str) -> str:
    return "" if address == image.uri else f"leads to {shown_address(address)}: "


def _host_remedy(image: ImageRef, address: str, error: Exception) -> str:
    """What to do where another host than Label Studio serves no file."""
    stored = _storage_of(plain_address(image.uri)) is not None
    if isinstance(error, BlockedHost):
        return f", or {'turn off pre-signed URLs of the' if stored else 'connect it as a'} storage in Label Studio"
    if not isinstance(error, FetchError) or error.status not in DENIED:
        return ""
    if stored:
        return (
            f"; the bucket does not accept what Label Studio signed: correct the storage's credentials in Label Studio "
            f"under {STORAGES_PAGE}, and the clock of its machine"
        )
    if _SIGNED.search(address):
        return (
            "; the signature in the task's address has expired or is not accepted: connect the bucket as a storage in "
            f"Label Studio ({STORAGES_PAGE}) and import the task with {', '.join(f'{s}://...' for s in STORAGES)}"
        )
    return ""


def _remedy(image: ImageRef, path: str, status: int) -> str:
    """How to make Label Studio serve a file that it has refused."""
    address = plain_address(image.uri)
    if (scheme := _storage_of(address)) is not None:
        bucket = address.partition("://")[2].partition("/")[0]
        if status == httpx.codes.FAILED_DEPENDENCY:
            return (
                f"; it could not read {scheme}://{bucket} and gives no reason: check the storage's connection in Label "
                f"Studio under {STORAGES_PAGE}; if that is well, the object is gone"
            )
        return (
            f"; no storage of this project reads {scheme}://{bucket}: add it in Label Studio under "
            f"{STORAGES_PAGE} > Add Source Storage ({STORAGES[scheme]}), or correct its credentials there"
        )
    if path.startswith("/data/local-files"):
        return (
            "; set LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT where "
            "Label Studio runs"
            if status == httpx.codes.FORBIDDEN
            else "; put the file below LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT, and add a storage of type Local files "
            "for its folder in Label Studio under Settings > Cloud Storage"
        )
    if path.startswith("/data/"):
        return "; put the file back into media/ of Label Studio's data folder, or import the image again"
    return ""


# Addresses


def plain_address(uri: str) -> str:
    """The address as a browser reads it: without surrounding blanks and line breaks, its scheme in small letters.

    Source:
        https://url.spec.whatwg.org, "basic URL parser", steps 1 to 3.
    """
    stripped = re.sub(r"[\t\r\n]", "", uri.strip("".join(map(chr, range(33)))))
    scheme, colon, rest = stripped.partition(":")
    if not colon or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]+", scheme):
        return stripped
    scheme = scheme.lower()
    if scheme in ("http", "https") and re.match(r"[\\/]{2}", rest):
        # In a web address, a browser reads backslashes before the query as slashes.
        path, mark, query = rest.partition("?")
        rest = path.replace("\\", "/") + mark + query
    return f"{scheme}:{rest}"


def is_file(path: str) -> bool:
    """Whether a path of Label Studio is one of its files, in any spelling of dots and slashes."""
    bare = re.split(r"[?#]", path, maxsplit=1)[0]
    decoded = unquote(unquote(bare)).replace("\\", "/")
    return _FILES.fullmatch(bare) is not None and not {".", ".."} & set(decoded.split("/"))


def same_home(uri: str, home: str) -> str | None:
    """The path of ``uri`` below ``home``, with its query; None where it leads elsewhere.

    On the usual ports, ``http`` and ``https`` are one home: a browser requests images by the page's scheme.
    """
    try:
        there, here = urlsplit(uri), urlsplit(home)
    except ValueError:  # an IPv6 address without its end
        return None
    if there.scheme not in ("http", "https") or _origin(*there[:2]) != _origin(*here[:2]):
        return None
    path = uri.split("://", 1)[1][len(there.netloc) :]
    prefix = here.path.rstrip("/")
    return path.removeprefix(prefix) if path.startswith(f"{prefix}/") else None


def _origin(scheme: str, netloc: str) -> tuple[str, str]:
    host = netloc.lower().removesuffix(":80" if scheme == "http" else ":443")
    return (scheme if re.search(r":\d+$", host) else "", host)


def _storage_of(address: str) -> str | None:
    """The scheme of a storage's URI; None for any other address."""
    scheme, colon, _ = address.partition("://")
    return scheme if colon and scheme in STORAGES else None


def _former_home(uri: str) -> str:
    """What to do where an external address looks like one of Label Studio; empty where it does not."""
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


def _way_out(uri: str) -> str:
    """Why an address leads to no image, and what to write instead.

    Args:
        uri: plain, and none of http(s)://, data:, of a storage, or a path of Label Studio's files.
    """
    for start, reason in _WAYS_OUT:
        if start.match(uri):
            return reason
    if re.match(r"[a-z][a-z0-9+.-]+:", uri):
        return f"is of {uri.partition(':')[0]}:, which is not read: {_EXPECTED}"
    host = "; where it begins with a host, write https:// before it" if re.match(r"[\w-]+(\.[\w-]+)+[:/]", uri) else ""
    return f"has no known beginning: {_EXPECTED}. For files on a disk, {_LOCAL_FILES}{host}"


def read_data_uri(uri: str) -> bytes:
    """The content of a data URI, in every spelling that browsers accept.

    The media type is ignored: the decoder goes by the bytes.

    Raises:
        ValueError: it has no comma, or malformed base64; names the remedy.

    Source:
        https://fetch.spec.whatwg.org/#data-urls and https://infra.spec.whatwg.org/#forgiving-base64-decode.
    """
    if not is_data_uri(uri):
        raise ValueError("is not a data URI")
    head, comma, body = plain_address(uri).partition("#")[0].removeprefix("data:").partition(",")
    if not comma:
        raise ValueError("has no comma before its content: write data:image/png;base64,...")
    content = unquote_to_bytes(body)
    if re.search(r"; *base64$", head.strip(), re.IGNORECASE) is None:
        return content
    text = re.sub(rb"[\t\n\f\r ]", b"", content)
    if len(text) % 4 == 0:
        text = re.sub(rb"={1,2}$", b"", text)
    if (odd := re.search(rb"[^A-Za-z0-9+/]", text)) is not None:
        raise ValueError(
            f"holds {odd[0].decode('latin-1')!r} as character {odd.start() + 1} of its base64, which no browser reads: "
            "encode the file again, with A-Z, a-z, 0-9, + and /"
        )
    if len(text) % 4 == 1:
        raise ValueError("is cut off: its base64 lacks characters at its end; encode the file again")
    return base64.b64decode(text + b"=" * (-len(text) % 4))
