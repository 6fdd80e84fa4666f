"""A TCP relay that can hold a request: before it arrives, or once it is answered. A test kills a process meanwhile."""

import contextlib
import re
import socket
import threading
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

CHUNK = 65536
LONGEST_HOLD_S = 60.0


@dataclass(eq=False)
class Held:
    """A request to hold.

    Attributes:
        request: pattern of its first bytes.
        answered: hold the answer instead of the request.
        reached: set when it is held.
        released: set this to let it go on.
    """

    request: re.Pattern[bytes]
    answered: bool
    reached: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)

    def wait(self) -> None:
        self.reached.set()
        self.released.wait(LONGEST_HOLD_S)


class Relay:
    """Forwards a port of its own to another port of the loopback interface.

    The held request of a client that is killed still arrives when it is released.
    """

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._held: Held | None = None
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    def hold(self, request: str, *, answered: bool) -> Held:
        """Hold the next request that begins with this pattern, such as ``PATCH /api/projects/``."""
        held = Held(re.compile(request.encode()), answered)
        with self._lock:
            self._held = held
        return held

    def forget(self) -> None:
        """Hold nothing more, and release what is held."""
        with self._lock:
            held, self._held = self._held, None
        if held is not None:
            held.released.set()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, name="relay", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.forget()
        # Closing alone does not wake the thread that accepts.
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._serve, args=(client,), name="relayed", daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), socket.create_connection(self._target) as server:
            awaited: list[Held] = []
            back = threading.Thread(target=self._answers, args=(server, client, awaited), daemon=True)
            back.start()
            with contextlib.suppress(OSError):  # killed: what it sent before goes on
                while chunk := client.recv(CHUNK):
                    if (held := self._take(chunk)) is not None:
                        if held.answered:
                            awaited.append(held)
                        else:
                            held.wait()
                    server.sendall(chunk)
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_WR)
            back.join()

    def _take(self, chunk: bytes) -> Held | None:
        with self._lock:
            if self._held is None or not self._held.request.match(chunk):
                return None
            held, self._held = self._held, None
            return held

    @staticmethod
    def _answers(server: socket.socket, client: socket.socket, awaited: list[Held]) -> None:
        with contextlib.suppress(OSError):
            while chunk := server.recv(CHUNK):
                while awaited:
                    awaited.pop().wait()
                client.sendall(chunk)
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_WR)
