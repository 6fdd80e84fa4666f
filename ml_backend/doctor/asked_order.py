"""Checks of what readers are served: the published ranking, whole and in its order."""

from ml_backend.doctor.case import Case
from ml_backend.doctor.check import Check, Outcome, failed, fine, skipped
from ml_backend.label_studio.serving import ONE_INSTALLATION, Aspect, is_lost

__all__ = ["ORDER_CHECKS"]

PUBLISHED_AGAIN = (
    "wait two minutes: the backend publishes the ranking again by itself while a worker runs; press Top up on its page "
    "to have it at once"
)


def _sampling(case: Case) -> Outcome:
    return _as_wanted(case, "sampling") or fine(str(case.project.get("sampling")))


def _readers(case: Case) -> Outcome:
    return _as_wanted(case, "readers per image") or fine(str(case.options.annotations_per_task))


def _predictions_on(case: Case) -> Outcome:
    return _as_wanted(case, "predictions on") or fine("on")


def _as_wanted(case: Case, aspect: Aspect) -> Outcome | None:
    """The problem of that aspect, which the project's page names in the same words; None where there is none."""
    for problem in case.serving_problems:
        if problem.aspect == aspect:
            if problem.foreign:
                return failed(problem.seen, ONE_INSTALLATION)
            return failed(problem.seen, PUBLISHED_AGAIN if problem.mended else _connect_order(case))
    return None


def _connect_order(case: Case) -> str:
    return f"run `ml-backend connect --project {case.project_id} --url {case.url}`"


def _automatic(case: Case) -> Outcome:
    if not case.project.get("min_annotations_to_start_training"):
        return fine("off, as the project has it: a round begins only when somebody starts it")
    return fine(f"after {case.options.retrain_after} changed annotations")


def _store(case: Case) -> Outcome:
    if case.kept.connection() is None:
        if case.backend is None:
            return skipped("the project is not connected yet")
        return failed(
            f"AL_DATA_DIR={case.settings.data_dir} knows nothing of project {case.key}, which Label Studio has "
            "connected",
            "set AL_DATA_DIR as it is set for `ml-backend serve` and `ml-backend work`: they share one folder",
        )
    # Both raise where the file is damaged; what readers are served is not known then.
    case.kept.published()
    case.kept.imported_versions()
    rounds = case.kept.round_ids()
    return fine(f"{len(rounds)} rounds, the last {rounds[-1]}" if rounds else "no round yet")


def _order(case: Case) -> Outcome:
    """The project's model version is what its readers' order comes from."""
    if (problem := _as_wanted(case, "order served")) is not None:
        return problem
    version = case.serving.version
    if version and is_lost(case.serving):
        return fine("no image waits for a label")
    return fine(f"{version}, the live ranking") if version else skipped("no ranking is published yet")


def _predictions(case: Case) -> Outcome:
    if (problem := _as_wanted(case, "predictions")) is not None:
        return problem
    published = case.kept.published()
    if published is None:
        return skipped("no ranking is published yet")
    # A task that is deleted takes its prediction along.
    gone = len(published.image_ids) - case.serving.there
    return fine(f"{case.serving.held} of {published.version}{f'; {gone} images were deleted since' if gone else ''}")


ORDER_CHECKS = (
    Check("sampling", _sampling, needs=("options",)),
    Check("readers per image", _readers, needs=("options",)),
    Check("predictions on", _predictions_on, needs=("options",)),
    Check("automatic rounds", _automatic, needs=("options",)),
    Check("rounds on disk", _store, needs=("project",), remedy="mend or move away the file that is named"),
    Check(
        "order served", _order, needs=("options", "rounds on disk"), remedy="mend or move away the file that is named"
    ),
    Check(
        "predictions",
        _predictions,
        needs=("options", "rounds on disk"),
        remedy="mend or move away the file that is named",
    ),
)
