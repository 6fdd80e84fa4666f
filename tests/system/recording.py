"""A tiny backend that writes down what Label Studio asks of it."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["RecordingBackend"]


class RecordingBackend(ThreadingHTTPServer):
    """Answers as Label Studio wants it from a backend; ``setup_status`` may be set to an error."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Recorder)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.setup_status = 200
        self.asked: list[tuple[str, str | None, dict[str, Any]]] = []  # path, Authorization, body

    def actions(self) -> list[tuple[str, str | None]]:
        """The webhooks' events, each with the credentials that came with it."""
        return [(body["action"], key) for path, key, body in self.asked if path == "/webhook"]


class _Recorder(BaseHTTPRequestHandler):
    server: RecordingBackend

    def do_GET(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        body = json.loads(self.rfile.read(length) or "{}")
        self.server.asked.append((self.path, self.headers.get("authorization"), body))
        answer = json.dumps({"model_version": "active-learning"}).encode()
        if self.path == "/setup" and self.server.setup_status != 200:
            # Of a refusal, Label Studio shows its user the reason phrase and nothing of the body.
            self.send_response(self.server.setup_status, "batch: no such option; known are batch_size, reserve")
        else:
            self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_POST = do_GET  # noqa: N815 - http.server's name

    def log_message(self, *_: object) -> None:
        """Keep quiet."""
