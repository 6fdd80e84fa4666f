"""Starts everything side by side, and waits until all of it answers."""

import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ml_backend.demo.options import DemoOptions
from ml_backend.demo.services import Backend, LabelStudio, Login, Worker
from ml_backend.demo.view import View
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.processes.process import Service, private_folder
from ml_backend.processes.valkey import Valkey
from ml_backend.queueing import RoundQueue, connect_redis
from ml_backend.settings import Settings
from ml_backend.storage import RoundStore

__all__ = ["Site", "bring_up"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Site:
    """Everything that runs, and the ways to it."""

    url: str  # of Label Studio
    admin: Login
    client: LabelStudioClient
    backend: Backend
    settings: Settings  # as the backend has them
    store: RoundStore
    queue: RoundQueue
    services: list[Service]  # that we started


def bring_up(options: DemoOptions, view: View, stack: ExitStack, meanwhile: Callable[[], T]) -> tuple[Site, T]:
    """Start Valkey, Label Studio, the backend and the worker.

    Args:
        options: where to keep data, and what runs already.
        view: told what is waited for.
        stack: stops them again, the last started first; filled as they start, so that a failure half way stops all.
        meanwhile: other work, done while they start.

    Returns:
        What runs, and what ``meanwhile`` gave.

    Raises:
        ServiceError: one of them did not start; with the end of its log.
    """
    folder = private_folder(options.folder.absolute())
    # Rounds that a stopped demo left in the queue belong to its project, not to the new one.
    shutil.rmtree(folder / "valkey", ignore_errors=True)
    label_studio: LabelStudio | None = None
    name = "Label Studio"
    if options.label_studio is None:
        # First, since it takes longest.
        label_studio = LabelStudio(folder / "label-studio")
        name += " (its first start takes a minute or three)" if label_studio.is_new else ""
        stack.enter_context(label_studio.start())
        url, admin = label_studio.url, label_studio.admin
    else:
        url, admin = options.label_studio.url, options.label_studio.admin
    view.step(name, 0, None)
    valkey = stack.enter_context(Valkey(folder / "valkey", options.redis_url).start()).wait()
    environ = _environ(folder, valkey.url, url, admin)
    backend = stack.enter_context(Backend(environ, folder / "backend.log").start())
    worker = stack.enter_context(Worker(backend.environ, folder / "worker.log").start())
    done = meanwhile()
    view.step("Valkey, backend and worker", 0, None)
    backend.wait()
    worker.wait()
    view.step("Valkey, backend and worker", 1, 1)
    if label_studio is not None:
        label_studio.wait()
    view.step(name, 1, 1)
    started: list[Service] = [valkey, backend, worker]
    site = Site(
        url=url,
        admin=admin,
        client=stack.enter_context(LabelStudioClient(url, admin.token)),
        backend=backend,
        settings=Settings.load(**_settings(backend)),
        store=RoundStore(folder / "data"),
        queue=RoundQueue(stack.enter_context(connect_redis(valkey.url))),
        services=started if label_studio is None else [*started, label_studio],
    )
    return site, done


def _environ(folder: Path, redis_url: str, url: str, admin: Login) -> dict[str, str]:
    own = {
        "AL_REDIS_URL": redis_url,
        "AL_DATA_DIR": str(folder / "data"),
        "AL_LABEL_STUDIO_URL": url,
        "AL_LABEL_STUDIO_API_KEY": admin.token,
        # The logs of a demo are read by people, its last lines also where a service has ended.
        "AL_LOG_FORMAT": "console",
    }
    # Said outright, so that the worker loads PyTorch once and not for every round.
    device = {} if "AL_DEVICE" in os.environ or _has_gpu() else {"AL_DEVICE": "cpu"}
    return dict(os.environ) | device | own


def _has_gpu() -> bool:
    """Whether a GPU's device file is there; asked without torch."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()


def _settings(backend: Backend) -> dict[str, str]:
    """The backend's environment as keyword arguments."""
    return {
        name: backend.environ[f"AL_{name.upper()}"]
        for name in (
            "redis_url",
            "data_dir",
            "label_studio_url",
            "label_studio_api_key",
            "basic_auth_user",
            "basic_auth_pass",
        )
    }
