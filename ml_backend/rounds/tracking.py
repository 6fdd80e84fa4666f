"""Logs rounds in MLflow, where the environment variable ``MLFLOW_TRACKING_URI`` is set.

mlflow-skinny, of the extra ``mlflow``, is imported only then.
"""

import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import copy_context
from pathlib import Path
from typing import Final

import structlog

from ml_backend.config import Settings
from ml_backend.extras import require
from ml_backend.rounds.export import CARD, export_round
from ml_backend.schemas import ProjectKey, RoundReport

TRACKING: Final = "MLFLOW_TRACKING_URI"
LIMIT_S: Final = 120.0
"""Seconds that a round waits for MLflow at most."""

_DEFAULTS: Final = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # MLflow's own 7 take minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # it is no line of the log
    "GIT_PYTHON_REFRESH": "quiet",
}
_POLL_S = 0.2
_NAME_CHARACTERS = 200  # of 250
_ANONYMOUS: Final = {"mlflow.user": "", "mlflow.source.name": "ml-backend"}
"""In place of the login and the path of the program, which MLflow would send."""
_PASSWORD: Final = re.compile(r"//[^/@\s]*@")

log = structlog.get_logger(__name__)


def track_round(
    settings: Settings,
    key: ProjectKey,
    report: RoundReport,
    stops: Callable[[], bool] = lambda: False,
    limit_s: float = LIMIT_S,
) -> None:
    """Log a saved round in MLflow, in a thread that is waited for. Never raises: a failure is logged.

    Args:
        settings: of the installation.
        key: of the project.
        report: of the round.
        stops: whether the worker must end, so that it waits no longer.
        limit_s: seconds to wait at most. The thread ends with the process.
    """
    folders: list[str] = []  # removed outside the thread, which may end with the process

    def attempt() -> None:
        try:
            require("mlflow", TRACKING)
            folders.append(tempfile.mkdtemp(prefix="mlflow-"))
            log.info("round logged in MLflow", run=_log_round(settings, key, report, Path(folders[0]) / "model"))
        except Exception as error:  # noqa: BLE001 - MLflow raises anything, and the round is published
            said = _PASSWORD.sub("//", str(error).partition("\n")[0])
            log.warning("the round is not in MLflow", error=said, kind=type(error).__name__)

    thread = threading.Thread(target=copy_context().run, args=(attempt,), daemon=True, name="mlflow")
    thread.start()
    waited = 0.0
    while thread.is_alive() and waited < limit_s and not stops():
        thread.join(_POLL_S)
        waited += _POLL_S
    if thread.is_alive():
        server = _PASSWORD.sub("//", os.environ.get(TRACKING, ""))
        log.warning("the round is not in MLflow, or not as a whole", waited_s=round(waited), server=server)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _log_round(settings: Settings, key: ProjectKey, report: RoundReport, folder: Path) -> str:
    """Log parameters, figures and, of a round that trained, the model, made in ``folder``; returns MLflow's id."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    import mlflow  # noqa: PLC0415 - takes seconds

    request = report.request
    mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or f"label-studio-project-{key.id}")
    tags = {"project": str(key), "round": request.round_id, "reason": request.reason, "base": report.base or ""}
    options = {**request.options, "classes": ",".join(request.classes), "seed": request.seed}
    if "weights" in options:
        options["weights"] = Path(str(options["weights"])).name  # where the file lies concerns this machine
    with mlflow.start_run(run_name=request.round_id, tags=tags | _ANONYMOUS) as run:
        mlflow.log_params(options)
        mlflow.log_metrics(_metrics(_figures(report)), step=int(request.round_id.removeprefix("r")))
        if report.trained:
            card = export_round(settings, key, folder, request.round_id, onnx=False)
            for name, figure in (("validation", card.validation), ("holdout", card.holdout)):
                if figure is not None:
                    ends = {"accuracy": figure.value, "low": figure.low, "high": figure.high, "images": figure.n}
                    mlflow.log_metrics({f"{name}_{end}": float(value) for end, value in ends.items()})
            mlflow.log_artifacts(str(folder), "model")
            mlflow.set_tags({"manifest": card.manifest or "", "version": card.version, "card": f"model/{CARD}"})
        return str(run.info.run_id)


def _metrics(figures: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Figures under names that MLflow accepts: a class may be called anything."""
    named: dict[str, float] = {}
    for name, value in figures:
        key = re.sub(r"[^\w\- ]", "_", name)[:_NAME_CHARACTERS]
        while key in named:
            key += "_"
        named[key] = value
    return named


def _figures(report: RoundReport) -> Iterator[tuple[str, float]]:
    yield "pool", float(len(report.ranking.image_ids))
    yield "excluded", float(len(report.exclusions))
    groups: dict[str, Mapping[str, float | None]] = {"labels": report.labels_per_class, "seconds": report.seconds}
    if (fit := report.fit) is not None and report.trained:
        yield "validation_loss", fit.validation_loss
        yield "epochs", float(fit.epochs)
        groups |= {"recall": fit.validation_recall, "auroc": {"validation": fit.validation_auroc}}
    for group, values in groups.items():
        yield from ((f"{group}_{name}", float(value)) for name, value in values.items() if value is not None)
