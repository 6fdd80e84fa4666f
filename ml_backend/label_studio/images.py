"""The bytes of an image, from wherever a task says that it is."""

import base64
import binascii
import hashlib
from urllib.parse import quote, unquote_to_bytes, urlsplit

import httpx

from ml_backend.errors import ImageError, LabelStudioError, RequestRefused
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.transport import read_bounded
from ml_backend.records import ImageRef

__all__ = ["LabelStudioImages"]

MAX_BYTES = 256 * 2**20  # a chest film has 10 to 40 MB
LOGIN_STATUS = 401


class LabelStudioImages:
    """Satisfies ``images.source.ImageSource``. Safe to share between threads.

    Args:
        client: whose key is sent to Label Studio itself, and to nobody else.
        hostname: where Label Studio says that it is; tasks from its local storage hold absolute URLs that begin so,
            and this backend may reach it under another name.
        max_bytes: of one image.
        timeout_s: seconds that one image from elsewhere may take.
        transport: httpx's own, for images from elsewhere; for tests.
    """

    def __init__(
        self,
        client: LabelStudioClient,
        hostname: str | None = None,
        *,
        max_bytes: int = MAX_BYTES,
        timeout_s: float = 60.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._client = client
        self._homes = tuple(url.rstrip("/") for url in (client.url, hostname) if url)
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._elsewhere = httpx.Client(timeout=timeout_s, follow_redirects=True, transport=transport)

    def fetch(self, image: ImageRef) -> bytes:
        """The encoded image.

        Raises:
            ImageError: this image cannot be had; says which and why.
            LabelStudioError: no image can be had: Label Studio does not answer, or refuses the key.
        """
        uri = image.uri
        if uri.startswith("data:"):
            return _inline(image)
        if (path := self._path(uri)) is not None:
            content, kind = self._from_label_studio(image, path)
        elif uri.startswith(("http://", "https://")):
            content, kind = self._from_elsewhere(image)
        elif "://" in uri:
            # s3://, gs://, azure-blob://: Label Studio holds the storage's credentials and hands the file on.
            where = quote(base64.urlsafe_b64encode(uri.encode()).decode())
            content, kind = self._from_label_studio(image, f"/tasks/{image.id}/resolve/?fileuri={where}")
        else:
            raise ImageError(
                f"image {image.id} is {uri!r}; wanted is a path that begins with / (an upload), http(s)://, data:, or "
                "the URI of a storage that is connected in Label Studio"
            )
        if _is_html(content, kind):
            raise ImageError(f"image {image.id} ({uri}) is an HTML page, no image: a login or an error page?")
        return content

    def cache_key(self, image: ImageRef) -> str:
        """What names the image's content in a cache: never the task id, which Label Studio hands out again."""
        uri = image.uri
        if uri.startswith("data:"):
            return f"data:{hashlib.sha256(uri.encode()).hexdigest()}"
        path = self._path(uri)
        # Uploads and storages are this Label Studio's; an address elsewhere is the same for all.
        return uri if uri.startswith(("http://", "https://")) and path is None else f"{self._client.url} {path or uri}"

    def close(self) -> None:
        self._elsewhere.close()

    def _path(self, uri: str) -> str | None:
        """The path below Label Studio's address, if the image lies there."""
        for home in self._homes:
            if uri.startswith(f"{home}/"):
                return uri.removeprefix(home)
        if not uri.startswith("/") or uri.startswith("//"):
            return None
        # Served under a path, Label Studio writes that path into the URIs of uploads.
        prefix = urlsplit(self._client.url).path
        return uri.removeprefix(prefix) if prefix and uri.startswith(f"{prefix}/") else uri

    def _from_label_studio(self, image: ImageRef, path: str) -> tuple[bytes, str]:
        try:
            return self._client.download(path, max_bytes=self._max_bytes)
        except RequestRefused as error:
            if error.status == LOGIN_STATUS:
                raise
            raise ImageError(f"image {image.id} ({image.uri}): {error}") from error
        except LabelStudioError as error:
            if isinstance(error.__cause__, httpx.ConnectError | httpx.ConnectTimeout):
                raise
            raise ImageError(f"image {image.id} ({image.uri}): {error}") from error
        except httpx.InvalidURL as error:
            raise ImageError(f"image {image.id} is {image.uri!r}, which is no address: {error}") from error

    def _from_elsewhere(self, image: ImageRef) -> tuple[bytes, str]:
        try:
            with self._elsewhere.stream("GET", image.uri) as response:
                if not response.is_success:
                    raise ImageError(f"image {image.id} ({image.uri}): answered {response.status_code}")
                answer = read_bounded(response, self._max_bytes, self._timeout_s)
        except RequestRefused as error:
            raise ImageError(f"image {image.id}: {error}") from error
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            # A UnicodeError is a host name that no address can be looked up for, such as http://a..b/.
            raise ImageError(f"image {image.id} ({image.uri}): {type(error).__name__}: {error}") from error
        return answer.content, answer.headers["content-type"]


def _inline(image: ImageRef) -> bytes:
    head, _, body = image.uri.partition(",")
    if not head.startswith("data:image/"):
        raise ImageError(f"image {image.id} is a data URI of {head[5:60]!r}; wanted is data:image/...;base64,...")
    try:
        if head.endswith(";base64"):
            return base64.b64decode(body, validate=True)
        return unquote_to_bytes(body)
    except (ValueError, binascii.Error) as error:
        raise ImageError(f"image {image.id} cannot be read from its data URI: {error}") from None


def _is_html(content: bytes, kind: str) -> bool:
    return "html" in kind or content[:256].lstrip().lower().startswith((b"<!doctype html", b"<html"))
