"""A live proof: the labels of a project, told apart by how their images came, and networks of its own kind."""

from contextlib import suppress

from ml_backend.assembly.comparing import active_against_random
from ml_backend.assembly.live import live_of
from ml_backend.assembly.world import world_of
from ml_backend.consensus.catalog import RULES
from ml_backend.engine.ports import Progress, no_guard, no_progress
from ml_backend.errors import PayloadError, StorageError
from ml_backend.insight import INSIGHT, RoundInsight
from ml_backend.insight.answers import Answer, answers_of
from ml_backend.insight.control import LabelsByOrigin, labels_by_origin
from ml_backend.insight.proof import PROOF_FILE, ActiveAgainstRandom
from ml_backend.label_studio.formats import training_classes
from ml_backend.label_studio.mirror import Mirror
from ml_backend.records import Label, ProjectKey, RoundReport
from ml_backend.settings import Settings
from ml_backend.storage import ProjectStore
from ml_backend.storage.files import write_record

__all__ = ["prove"]


def prove(settings: Settings, key: ProjectKey, progress: Progress = no_progress) -> ActiveAgainstRandom:
    """Compare active with random at equal label counts, and keep the result in the project's folder.

    Nothing else of the project is changed, so that a worker may run its rounds meanwhile.

    Args:
        settings: of the installation.
        key: of the project.
        progress: told when the labels are read, and then of each network that was trained.

    Raises:
        UnknownProject, SettingsError, LabelStudioError: the project cannot be read.
        TooFewLabels: too little to compare; says how many labels more.
        BackendError: see ``Learner``.
    """
    # Somebody waits for the answer: a Label Studio that is away is told of at once.
    with world_of(settings, key, patience_s=0.0) as world:
        progress("labels", 0, 1)
        live = live_of(world, no_guard)
        classes = training_classes(live.config, live.options)
        labels = RULES[live.options.consensus](live.labels.annotations(), classes).labels
        mirror = live.readings.mirror(Mirror)
        if mirror is None:
            raise PayloadError(f"the reading of project {key.id} could not be kept: is the data folder writable?")
        origin = _origin(world.project, labels, answers_of(mirror, live.config, live.options))
        # The quarantine bars images here, and is not settled: who looks at labelled images only would strike all others
        # off its list.
        found = active_against_random(
            origin,
            lambda: world.learner(live.options, no_progress),
            classes,
            validation_share=live.options.validation_share,
            seed=live.options.seed,
            control_share=live.options.control_share,
            progress=lambda done, total: progress("train", done, total),
        )
        write_record(world.project.folder / PROOF_FILE, found)
        return found


def _origin(project: ProjectStore, labels: tuple[Label, ...], answers: list[Answer]) -> LabelsByOrigin:
    reports: list[RoundReport] = []
    insights: dict[str, RoundInsight] = {}
    for round_id in project.round_ids():
        # A damaged round's images count as of the round before: it cannot say which came by chance.
        with suppress(StorageError):
            report = project.report(round_id)
            reports.append(report)
            if (insight := project.record(round_id, INSIGHT, RoundInsight)) is not None:
                insights[round_id] = insight
    return labels_by_origin(reports, insights, labels, answers)
