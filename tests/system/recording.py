"""A backend that records the requests of Label Studio."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class RecordingBackend(ThreadingHTTPServer):
    """Answers as Label Studio expects; ``setup_status`` may be set to an error."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Recorder)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.setup_status = 200
        self.asked: list[tuple[str, str | None, dict[str, Any]]] = []  # path, Authorization, body

    def actions(self) -> list[tuple[str, str | None]]:
        """The events of webhooks, each with its credentials."""
        return [(body["action"], key) for path, key, body in self.asked if path == "/webhook"]


class _Recorder(BaseHTTPRequestHandler):
    server: RecordingBackend

    def do_GET(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        body = json.loads(self.rfile.read(length) or "{}")
        self.server.asked.append((self.path, self.headers.get("authorization"), body))
        answer = json.dumps({"model_version": "active-learning"}).encode()
        if self.path == "/setup" and self.server.setup_status != 200:
            # Label Studio shows its user the reason phrase of a refusal, and nothing of the body.
            self.send_response(self.server.setup_status, "batch: no such option; known are batch_size, reserve")
        else:
            self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_POST = do_GET  # noqa: N815 - http.server's name

    def log_message(self, *_: object) -> None:
        """Log nothing."""
