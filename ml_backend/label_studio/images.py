"""The bytes of an image, from wherever a task says that it is.

Whoever may import tasks chooses the addresses. So the key is sent to Label Studio alone, and there only to what serves
files; other hosts are asked only where the operator allows them; and every redirect is judged like a first address.
"""

import base64
import hashlib
import time
from urllib.parse import quote, urlsplit

import httpx

from ml_backend.config import ImageHosts, is_data_uri, shown_address
from ml_backend.errors import ImageError, ImageErrorKind, LabelStudioError, RequestRefused
from ml_backend.label_studio.client import LabelStudioClient, Redirected
from ml_backend.label_studio.external_images import (
    STORAGES,
    ExternalImageFetcher,
    Refused,
    former_home,
    is_file,
    plain_address,
    read_data_uri,
    same_home,
    way_out,
)
from ml_backend.schemas import ImageRef

MAX_BYTES = 256 * 2**20  # a chest film has 10 to 40 MB
MAX_REDIRECTS = 5
LOGIN_STATUS, FORBIDDEN = 401, 403
VERSION_S = 3.0  # a host that takes longer to say whether a file is another is asked for the file in the end
WEB = ("http://", "https://")

_BY_STATUS: dict[int, ImageErrorKind] = {
    401: "forbidden",
    403: "forbidden",
    404: "missing",
    408: "timed-out",
    410: "missing",
    413: "too-large",
    429: "unreachable",
    502: "unreachable",
    503: "unreachable",
    504: "unreachable",
}


class LabelStudioImages:
    """Satisfies ``images.source.ImageSource``. Safe to share between threads.

    Args:
        client: whose key is sent to Label Studio itself, and to nobody else.
        hostname: where Label Studio says that it is; tasks from its local storage hold absolute URLs that begin so,
            and this backend may reach it under another name.
        hosts: from which images may come besides; none by default.
        max_bytes: of one image.
        timeout_s: seconds that one image from elsewhere may take, redirects included.
        elsewhere: fetches from these hosts; for tests.
    """

    def __init__(
        self,
        client: LabelStudioClient,
        hostname: str | None = None,
        *,
        hosts: ImageHosts | None = None,
        max_bytes: int = MAX_BYTES,
        timeout_s: float = 60.0,
        elsewhere: ExternalImageFetcher | None = None,
    ) -> None:
        self._client = client
        self._homes = tuple(url.rstrip("/") for url in (client.url, hostname) if url)
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._elsewhere = elsewhere or ExternalImageFetcher(hosts or ImageHosts(), max_bytes=max_bytes)

    def fetch(self, image: ImageRef) -> bytes:
        """The encoded image.

        Raises:
            ImageError: this image cannot be had; says which and why, and repeats no signature or password of its
                address.
            LabelStudioError: no image can be had: Label Studio does not answer, or refuses the key.
        """
        content, kind = (_inline(image, self._max_bytes), "") if is_data_uri(image.uri) else self._follow(image)
        if _is_html(content, kind):
            raise _refusal(
                image,
                "is an HTML page, no image: a login or an error page? Give an address that leads to the image itself "
                "without a login, or connect its storage in Label Studio",
            )
        return content

    def cache_key(self, image: ImageRef) -> str:
        """What names the image's content in a cache: never the task id, which Label Studio hands out again."""
        if is_data_uri(image.uri):
            return f"data:{hashlib.sha256(image.uri.encode()).hexdigest()}"
        uri = plain_address(image.uri)
        path = self._path(uri)
        # Uploads and storages are this Label Studio's; an address elsewhere is the same for all.
        return uri if uri.startswith(WEB) and path is None else f"{self._client.url} {path or uri}"

    def version(self, image: ImageRef) -> str | None:
        """What an image's host elsewhere says of the file there, without its content; another text is another file.

        Returns:
            Empty where the host says nothing, or the image lies in Label Studio, which gives every upload a new name;
            None where there was no answer in time.
        """
        end = time.monotonic() + VERSION_S
        address = plain_address(image.uri)
        for _ in range(MAX_REDIRECTS + 1):
            if not address.startswith(WEB) or self._path(address) is not None:
                return ""
            try:
                found = self._elsewhere.get(address, end, method="HEAD")
            except Refused:
                return ""
            except OSError:
                return None
            if found.location is None:
                return found.version
            address = found.location
        return ""

    def close(self) -> None:
        self._elsewhere.close()

    def _follow(self, image: ImageRef) -> tuple[bytes, str]:
        end = time.monotonic() + self._timeout_s
        address = _first_address(image)
        for _ in range(MAX_REDIRECTS + 1):
            found = self._get(image, address, end)
            if not isinstance(found, str):
                return found
            address = found
        raise _refusal(image, f"was redirected more than {MAX_REDIRECTS} times")

    def _get(self, image: ImageRef, address: str, end: float) -> tuple[bytes, str] | str:
        """A file and its content type, or the address that it is redirected to."""
        if (path := self._path(address)) is not None:
            return self._from_label_studio(image, path)
        try:
            found = self._elsewhere.get(address, end)
        except (Refused, OSError) as error:
            why = f"{_on_the_way(image, address)}{error}{former_home(address)}"
            raise _refusal(image, why, _kind(error)) from error
        return (found.content, found.kind) if found.location is None else found.location

    def _path(self, uri: str) -> str | None:
        """The path below Label Studio's address, if the image lies there."""
        for home in self._homes:
            if (path := same_home(uri, home)) is not None:
                return path
        if not uri.startswith("/") or uri.startswith("//"):
            return None
        # Served under a path, Label Studio writes that path into the URIs of uploads.
        prefix = urlsplit(self._client.url).path
        return uri.removeprefix(prefix) if prefix and uri.startswith(f"{prefix}/") else uri

    def _from_label_studio(self, image: ImageRef, path: str) -> tuple[bytes, str] | str:
        if not is_file(path):
            raise _refusal(image, f"{_on_the_way(image, path)}{way_out(path)}")
        try:
            return self._client.download(path, max_bytes=self._max_bytes)
        except Redirected as redirected:
            return redirected.location
        except RequestRefused as error:
            if error.status == LOGIN_STATUS:
                raise
            raise _refusal(image, f"{error}{_mend(image, path, error.status)}", _kind(error)) from error
        except LabelStudioError as error:
            if isinstance(error.__cause__, httpx.ConnectError | httpx.ConnectTimeout):
                raise
            raise _refusal(image, str(error), _kind(error)) from error
        except httpx.InvalidURL as error:
            raise _refusal(image, f"is no address: {error}") from error


def _first_address(image: ImageRef) -> str:
    """The address that an image is asked for at: as the task has it, or that of Label Studio for its storage."""
    uri = plain_address(image.uri)
    if uri.startswith(WEB) or (uri.startswith("/") and not uri.startswith("//")):
        return uri
    scheme, colon, _ = uri.partition("://")
    if colon and scheme in STORAGES:
        # Label Studio holds the storage's credentials and hands the file on.
        where = quote(base64.urlsafe_b64encode(uri.encode()).decode())
        return f"/tasks/{image.id}/resolve/?fileuri={where}"
    raise _refusal(image, way_out(uri))


def _mend(image: ImageRef, path: str, status: int) -> str:
    """What makes Label Studio hand out a file that it has refused."""
    scheme, colon, rest = plain_address(image.uri).partition("://")
    if colon and scheme in STORAGES:
        return (
            f"; no storage of this project reads {scheme}://{rest.partition('/')[0]}: add it in Label Studio under "
            f"Settings > Cloud Storage > Add Source Storage ({STORAGES[scheme]}), or mend its credentials there"
        )
    if path.startswith("/data/local-files"):
        return (
            "; set LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT where "
            "Label Studio runs"
            if status == FORBIDDEN
            else "; put the file below LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT, and add a storage of type Local files "
            "for its folder in Label Studio under Settings > Cloud Storage"
        )
    if path.startswith("/data/"):
        return "; put the file back into media/ of Label Studio's data folder, or import the image again"
    return ""


def _refusal(image: ImageRef, why: str, kind: ImageErrorKind = "refused") -> ImageError:
    return ImageError(f"image {image.id} ({shown_address(image.uri)!r}): {why}", kind)


def _kind(error: BaseException | None) -> ImageErrorKind:
    match error:
        case RequestRefused() | Refused() if error.status is not None:
            return _BY_STATUS.get(error.status, "refused")
        case httpx.TimeoutException():
            return "timed-out"
        case httpx.TransportError():
            return "unreachable"
        case OSError():
            return ImageError.kind_of(error)
        case None:
            return "refused"
    return _kind(error.__cause__)


def _on_the_way(image: ImageRef, address: str) -> str:
    return "" if address == image.uri else f"leads to {shown_address(address)}: "


def _inline(image: ImageRef, max_bytes: int) -> bytes:
    if len(image.uri) > 3 * max_bytes:  # every byte written as %XX
        raise _refusal(image, f"holds {len(image.uri)} characters, more than {max_bytes} bytes: shrink the image")
    try:
        return read_data_uri(image.uri)
    except ValueError as error:
        raise _refusal(image, str(error)) from None


def _is_html(content: bytes, kind: str) -> bool:
    return "html" in kind or content[:256].lstrip().lower().startswith((b"<!doctype html", b"<html"))
