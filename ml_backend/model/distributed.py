"""Processes that run a round together, by torch.distributed: gloo between CPUs, NCCL between GPUs.

Rank 0 runs the round. Each follower has a connection to it, which carries a line when its part of a command is done or
has failed, and ends when either process ends: nobody waits for a peer that is dead.
"""

import io
import json
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from itertools import pairwise
from typing import Any, BinaryIO, Final, TypeAlias, TypeVar, cast

import structlog
import torch
from torch import Tensor, distributed
from torch._C._distributed_c10d import TCPStore

from ml_backend.model import inference

JOIN_S = 60.0  # for the followers that are starting, and for those of other machines
GRACE_S = 5.0  # in which rank 0 may meet the error of a follower itself, and report it as its own
HELLO_S = 5.0
TIMEOUT = timedelta(days=7)  # of a collective: ranks wait while one trains; a dead one is found by its connection

T = TypeVar("T")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Group:
    """One process among those of its round. With one process every method is the identity, and nothing is set up.

    Values travel as ``torch.save`` writes them, and are read with ``weights_only``: tensors, numbers, text, bytes, and
    tuples, lists and dictionaries of them. A peer cannot make this process execute anything.

    Attributes:
        rank: of this process, 0 to ``size - 1``; rank 0 runs the round.
        size: number of processes.
    """

    rank: int
    size: int

    @property
    def is_main(self) -> bool:
        """Whether this process runs the round."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """The consecutive part of this rank: whole shards of ``inference.SHARD_IMAGES``.

        The parts of all ranks in order are the items, and differ by one shard at most: those of high ranks are empty
        where there are fewer shards than ranks.
        """
        return self.parts(items)[self.rank]

    def parts(self, items: Sequence[T]) -> list[Sequence[T]]:
        """The parts of all ranks; see ``share``."""
        size = inference.SHARD_IMAGES
        each, more = divmod(-(-len(items) // size), self.size)
        ends = [size * (each * rank + min(rank, more)) for rank in range(self.size + 1)]
        return [items[start:end] for start, end in pairwise(ends)]

    def gather(self, part: T) -> list[T]:
        """The values of all ranks, in their order, on every rank. Every rank must call it."""
        return [self.broadcast(part, source) for source in range(self.size)]

    def collect(self, part: T) -> list[T]:
        """As ``gather``, on rank 0 alone; the others get an empty list."""
        if self.is_main:
            return [part, *(cast("T", _receive(rank)) for rank in range(1, self.size))]
        data = _encode(part)
        distributed.send(torch.tensor(len(data)), 0)
        distributed.send(data, 0)
        return []

    def broadcast(self, value: T, source: int = 0) -> T:
        """The value of rank ``source``, on every rank; the others' is ignored. Every rank must call it."""
        if self.size == 1:
            return value
        here = self.rank == source
        data = _encode(value) if here else torch.empty(0, dtype=torch.uint8)
        length = torch.tensor(len(data))
        distributed.broadcast(length, source)
        data = data if here else torch.empty(int(length), dtype=torch.uint8)
        distributed.broadcast(data, source)
        return value if here else cast("T", _decode(data))


SINGLE: Final = Group(0, 1)
"""One process alone."""


def _encode(value: object) -> Tensor:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return torch.frombuffer(bytearray(buffer.getbuffer()), dtype=torch.uint8)


def _decode(data: Tensor) -> Any:
    return torch.load(io.BytesIO(data.numpy().tobytes()), weights_only=True)


def _receive(rank: int) -> Any:
    length = torch.tensor(0)
    distributed.recv(length, rank)
    data = torch.empty(int(length), dtype=torch.uint8)
    distributed.recv(data, rank)
    return _decode(data)


@dataclass(frozen=True, slots=True)
class PartDone:
    """What a follower reports of its part of a command: its images, and the seconds that they took."""

    images: int
    seconds: float


@dataclass(slots=True)
class _Peer:
    """A follower, as rank 0 sees it."""

    connection: socket.socket
    lines: BinaryIO
    name: str = ""
    error: str = ""

    @property
    def is_alive(self) -> bool:
        """Whether the connection is open, before its first line after the name."""
        self.connection.setblocking(False)
        try:
            return bool(self.connection.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return True
        except OSError:
            return False
        finally:
            self.connection.setblocking(True)


@dataclass(slots=True)
class Crew:
    """The followers of one round, as rank 0 sees them.

    Args:
        listener: where they connect.
        expected: their number on all machines.
        local: processes on this machine, this one included, which share its cores.
        token: that they must show: of the same version and installation.
        lost: called from another thread with a sentence if one dies; must end this process, which may wait for it.
    """

    listener: socket.socket
    expected: int
    local: int
    token: str
    lost: Callable[[str], object]
    _peers: list[_Peer] = field(default_factory=list)
    _done: "queue.Queue[tuple[int, PartDone]]" = field(default_factory=queue.Queue)
    _closing: bool = False
    _threads: int = 0

    def form(self, tick: Callable[[], object]) -> Group:
        """Wait for the followers, and form the group: of those that have come within a minute.

        Args:
            tick: called while waiting; may raise, to stop.
        """
        deadline = time.monotonic() + JOIN_S
        while len(self._peers) < self.expected and time.monotonic() < deadline:
            tick()
            self._accept()
            self._peers = [peer for peer in self._peers if peer.is_alive]
        if missing := self.expected - len(self._peers):
            log.warning(
                f"the round goes on without processes that did not come within {JOIN_S:.0f} s: see their logs",
                missing=missing,
                there=[peer.name for peer in self._peers],
            )
        size = len(self._peers) + 1
        if size == 1:
            return SINGLE
        self._threads = torch.get_num_threads()
        torch.set_num_threads(max(1, self._threads // self.local))
        host = self.listener.getsockname()[0]
        rendezvous = socket.create_server((host, 0))
        port = rendezvous.getsockname()[1]
        store = TCPStore(
            host, port, is_master=True, wait_for_workers=False, timeout=TIMEOUT, master_listen_fd=rendezvous.detach()
        )
        for rank, peer in enumerate(self._peers, start=1):
            _send(peer.lines, {"rank": rank, "size": size, "port": port})
            threading.Thread(target=self._listen, args=(rank, peer), daemon=True).start()
        _init(store, 0, size)
        log.info("round shared out", processes=size, others=[peer.name for peer in self._peers])
        return Group(0, size)

    def name(self, rank: int) -> str:
        """Host and process of a follower."""
        return self._peers[rank - 1].name

    def wait(self, tick: Callable[[], object]) -> dict[int, PartDone]:
        """Wait until every follower has done its part of a command; their reports by rank.

        Args:
            tick: called while waiting; may raise, to stop.
        """
        found: dict[int, PartDone] = {}
        while len(found) < len(self._peers):
            try:
                rank, done = self._done.get(timeout=0.2)
                found[rank] = done
            except queue.Empty:
                tick()
        return found

    def close(self) -> None:
        """Dismiss the followers, whatever they do."""
        self._closing = True
        for peer in self._peers:
            with suppress(OSError):  # it has closed the connection itself
                peer.connection.shutdown(socket.SHUT_RDWR)
            peer.connection.close()
        if self._threads:
            torch.set_num_threads(self._threads)
        if self._peers and distributed.is_initialized():
            distributed.destroy_process_group()

    def _accept(self) -> None:
        self.listener.settimeout(0.2)
        try:
            connection, _ = self.listener.accept()
        except TimeoutError:
            return
        _keep_alive(connection)
        peer = _Peer(connection, cast("BinaryIO", connection.makefile("rwb")))
        connection.settimeout(HELLO_S)
        try:
            hello = json.loads(peer.lines.readline())
            if hello["token"] != self.token:
                log.warning("a process was refused: of another version or installation", process=hello["name"])
                raise ValueError(hello["name"])  # noqa: TRY301 - like any other greeting that is none
        except (OSError, ValueError, KeyError, TypeError):
            connection.close()
            return
        peer.name = hello["name"]
        connection.settimeout(None)
        self._peers.append(peer)

    def _listen(self, rank: int, peer: _Peer) -> None:
        with suppress(OSError, ValueError):
            for line in peer.lines:
                message = json.loads(line)
                if error := message.get("error"):
                    peer.error = error
                    timer = threading.Timer(GRACE_S, self._lose, (rank, f"failed: {error}"))
                    timer.daemon = True
                    timer.start()
                else:
                    self._done.put((rank, PartDone(**message)))
        self._lose(rank, f"failed: {peer.error}" if peer.error else "died")

    def _lose(self, rank: int, why: str) -> None:
        if not self._closing:
            self.lost(f"rank {rank} of {len(self._peers) + 1} (on {self.name(rank)}) {why}")


Serve: TypeAlias = Callable[[Group, Callable[[PartDone], None]], None]
"""Takes part in a round until its end; is given the group, and a function that reports a part as done."""


def follow(address: tuple[str, int], token: str, local_rank: int, serve: Serve) -> None:
    """Take part in one round after the other, as a follower. Ends this process when the round ends before its time.

    Args:
        address: host and port of ``Crew.listener``; retried as long as nobody listens there.
        token: see ``Crew``.
        local_rank: of this process on its machine: the number of its GPU.
        serve: see ``Serve``.
    """
    # Between rounds the GPU's memory is free.
    while not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        with _connect(address) as connection, cast("BinaryIO", connection.makefile("rwb")) as lines:
            line = b""
            with suppress(OSError):
                _send(lines, {"token": token, "name": f"{socket.gethostname()}, process {os.getpid()}"})
                line = lines.readline()
            if not line:
                log.info("not taken into a round: the worker has ended, or is of another version or installation")
                return
            _take_part(lines, address[0], json.loads(line), local_rank, serve)


def _take_part(lines: BinaryIO, host: str, welcome: dict[str, int], local_rank: int, serve: Serve) -> None:
    over, rank, size = threading.Event(), welcome["rank"], welcome["size"]
    threading.Thread(target=_exit_with, args=(lines, over), daemon=True).start()
    try:
        if torch.cuda.is_available():
            torch.cuda.set_device(local_rank)
        _init(TCPStore(host, welcome["port"], is_master=False, timeout=TIMEOUT), rank, size)
        serve(Group(rank, size), lambda done: _send(lines, asdict(done)))
        over.set()
        distributed.destroy_process_group()
    except Exception as error:
        time.sleep(2)  # where rank 0 has ended, so does this process, without a log
        log.exception("a part of a round failed", rank=rank)
        _send(lines, {"error": f"{type(error).__name__}: {error}"})
        time.sleep(TIMEOUT.total_seconds())  # rank 0 ends the round, and with it this process


def _init(store: TCPStore, rank: int, size: int) -> None:
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)


def _connect(address: tuple[str, int]) -> socket.socket:
    while True:
        try:
            connection = socket.create_connection(address, timeout=HELLO_S)
        except OSError:
            time.sleep(1)
            continue
        connection.settimeout(None)
        _keep_alive(connection)
        return connection


def _keep_alive(connection: socket.socket) -> None:
    """Notice within half a minute that the other machine is gone."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _send(lines: BinaryIO, message: dict[str, Any]) -> None:
    lines.write(json.dumps(message).encode() + b"\n")
    lines.flush()


def _exit_with(lines: BinaryIO, over: threading.Event) -> None:
    """End this process when rank 0 has ended, unless the round is over."""
    with suppress(OSError, ValueError):
        lines.read(1)
    if not over.wait(1):  # the end of the round may be on its way
        os._exit(0)
