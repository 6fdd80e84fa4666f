"""Checks of what readers are served: the published ranking, whole and in its order."""

from ml_backend.doctor.case import Case
from ml_backend.doctor.check import Check, Outcome, failed, fine, skipped
from ml_backend.label_studio.connect import wanted_project

__all__ = ["CHECKS"]

SHARED = {
    "sampling": "Label Studio serves by {seen!r}, and the ranking only by {wanted!r}",
    "maximum_annotations": "an image is shown to {seen} readers, and annotations_per_task is {wanted}",
    "show_collab_predictions": "predictions are switched off: the next Save of the project's settings drops the order",
}


def _sampling(case: Case) -> Outcome:
    return _as_wanted(case, "sampling")


def _readers(case: Case) -> Outcome:
    return _as_wanted(case, "maximum_annotations")


def _predictions_on(case: Case) -> Outcome:
    return _as_wanted(case, "show_collab_predictions")


def _as_wanted(case: Case, name: str) -> Outcome:
    wanted, seen = wanted_project(case.options)[name], case.project.get(name)
    if seen != wanted:
        return failed(
            SHARED[name].format(seen=seen, wanted=wanted),
            f"run `ml-backend connect --project {case.project_id} --url {case.url}`",
        )
    return fine("on" if wanted is True else str(wanted))


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
    rounds = case.kept.round_ids()
    return fine(f"{len(rounds)} rounds, the last {rounds[-1]}" if rounds else "no round yet")


def _order(case: Case) -> Outcome:
    """The project's model version is what its readers' order comes from."""
    # Anew: a round may have been published since the project was first asked for.
    seen = case.client.project(case.project_id).get("model_version") or ""
    title = str((case.backend or {}).get("title"))
    published = case.kept.published()
    wanted = published.version if published else ""
    if seen == wanted:
        return fine(f"{wanted}, the live ranking") if published else skipped("no ranking is published yet")
    what = ", the backend's title, which serves in random order" if seen == title else ""
    if published is None:
        told = f"model_version is {seen!r}{what}; no ranking is published yet"
        again = f"run `ml-backend connect --project {case.project_id} --url {case.url}`"
        return failed(told, again) if what else fine(told)
    return failed(
        f"model_version is {seen!r}{what}; the live ranking is {wanted}",
        "press Start Training in the backend's menu (project's settings, Model): the next round puts it right",
    )


def _predictions(case: Case) -> Outcome:
    published = case.kept.published()
    if published is None:
        return skipped("no ranking is published yet")
    held = case.client.model_versions(case.project_id).get(published.version, 0)
    # A task that is deleted takes its prediction along.
    there = len(case.client.existing(case.project_id, map(int, published.image_ids)))
    if held != there:
        return failed(
            f"Label Studio holds {held} predictions of {published.version}, and {there} of its images are there",
            "press Start Training in the backend's menu: the next round publishes all of them again",
        )
    gone = len(published.image_ids) - there
    return fine(f"{held} of {published.version}{f'; {gone} images were deleted since' if gone else ''}")


CHECKS = (
    Check("sampling", _sampling, needs=("options",)),
    Check("readers per image", _readers, needs=("options",)),
    Check("predictions on", _predictions_on, needs=("options",)),
    Check("automatic rounds", _automatic, needs=("options",)),
    Check("rounds on disk", _store, needs=("project",), remedy="mend or move away the file that is named"),
    Check("order served", _order, needs=("rounds on disk",), remedy="mend or move away the file that is named"),
    Check("predictions", _predictions, needs=("rounds on disk",), remedy="mend or move away the file that is named"),
)
