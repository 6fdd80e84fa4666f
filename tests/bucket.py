"""An S3 server on loopback: moto's objects behind what moto leaves out, keys and the end of presigned URLs."""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from threading import Thread
from typing import Any
from urllib.parse import parse_qs
from wsgiref.types import StartResponse, WSGIEnvironment

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.s3.models import s3_backends
from werkzeug.serving import WSGIRequestHandler, make_server

_CREDENTIAL = re.compile(r"Credential=([^/]+)/")
Refusal = tuple[int, str, str]


class _Quiet(WSGIRequestHandler):
    def log(self, *_args: Any, **_options: Any) -> None:
        pass


@dataclass
class Bucket:
    """One bucket of one server.

    Attributes:
        url: of the server.
        name: of the bucket.
        keys: access keys that are accepted; a key that is rotated leaves the set.
        refuse: what to answer to a request for an object instead of it, by its path; None for the object.
        ahead: how far its clock is ahead of this machine's.
        asked: paths of the requests for objects, without their queries.
    """

    url: str
    name: str = "films"
    keys: set[str] = field(default_factory=lambda: {"first-key"})
    refuse: Callable[[str], Refusal | None] = lambda _path: None
    ahead: timedelta = timedelta()
    asked: list[str] = field(default_factory=list)

    @property
    def host(self) -> str:
        return self.url.removeprefix("http://")

    def put(self, key: str, content: bytes) -> str:
        """Store an object and return its URI."""
        self._moto.put_object(self.name, key, content)
        return f"s3://{self.name}/{key}"

    def delete(self, key: str) -> None:
        self._moto.delete_object(self.name, key)

    @property
    def _moto(self) -> Any:
        return s3_backends["123456789012"]["aws"]

    def _refusal(self, environ: WSGIEnvironment) -> Refusal | None:
        query = {name: values[0] for name, values in parse_qs(environ["QUERY_STRING"]).items()}
        presigned = f"Credential={query.get('X-Amz-Credential')}"
        signed = _CREDENTIAL.search(environ.get("HTTP_AUTHORIZATION", presigned))
        if signed is None:
            return 403, "AccessDenied", "Access Denied"
        if signed[1] not in self.keys:
            return 403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records."
        if "X-Amz-Date" in query:
            made = datetime.strptime(query["X-Amz-Date"], "%Y%m%dT%H%M%S%z")
            if datetime.now(UTC) + self.ahead > made + timedelta(seconds=int(query["X-Amz-Expires"])):
                return 403, "AccessDenied", "Request has expired"
        path = environ["PATH_INFO"]
        if path.count("/") < 2:  # the bucket itself
            return None
        self.asked.append(path)
        return self.refuse(path)

    def __call__(self, app: Any, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        refusal = self._refusal(environ)
        if refusal is None:
            return app(environ, start_response)  # type: ignore[no-any-return]
        status, code, message = refusal
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
        start_response(f"{status} x", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else body]


@contextmanager
def serving_bucket() -> Iterator[Bucket]:
    """An empty bucket on a server of its own."""
    app = DomainDispatcherApplication(create_backend_app)
    server = make_server(
        "127.0.0.1", 0, lambda environ, start: bucket(app, environ, start), threaded=True, request_handler=_Quiet
    )
    bucket = Bucket(f"http://127.0.0.1:{server.server_port}")
    bucket._moto.create_bucket(bucket.name, "us-east-1")
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield bucket
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        bucket._moto.reset()
