"""The answers on a project's page: a sentence each, with its uncertainty or with what is missing, in numbers."""

from collections.abc import Sequence

from ml_backend.analytics.evaluation import (
    MIN_HOLDOUT_IMAGES,
    ActiveAgainstRandom,
    HoldoutEstimate,
    newcombe,
    wilson,
)
from ml_backend.analytics.history import Confusion, same_classes
from ml_backend.analytics.standing import Standing
from ml_backend.analytics.stopping import LEVEL_ROUNDS, MIN_VALIDATION_IMAGES, count, in_minutes, label_unit, slope
from ml_backend.schemas import FitReport
from ml_backend.storage import RoundSummary

CONTROL_SHARES = (0.1, 0.3, 0.5)
"""Values of the option ``control_share`` that are recommended, the last one its maximum."""
SMALL_DIFFERENCE = 0.02
"""Difference of accuracies below which the images that would show it are not estimated: thousands."""
MOST_IMAGES = 10_000
"""Validation images of the newest network up to which a difference is looked for."""


def share_words(share: float, n: int) -> str:
    """A share of ``n`` images with its 95 % interval, in per cent: ``64 % (45 to 80)``; ``n`` is above 0."""
    low, high = wilson(round(share * n), n)
    return f"{100 * share:.0f} % ({100 * low:.0f} to {100 * high:.0f})"


def accuracy_answer(fit: FitReport | None, control: HoldoutEstimate | None) -> str:
    """How often the network is right: about random images where they are enough, else about validation images.

    Args:
        fit: training of the newest network; None before the first.
        control: accuracy on holdout images; None without a holdout.
    """
    if control is not None and control.accuracy is not None and control.enough:
        share = share_words(control.accuracy, control.n)
        return f"The network is right for {share} of the last {control.n} random images."
    if fit is not None:
        n = fit.validation_images
        return f"The network is right for {share_words(fit.validation_accuracy, n)} of {n} validation images."
    return ""


def labelled_answer(standing: Standing, seconds_an_image: float | None) -> str:
    """How many images have a label, and what is left to read.

    Args:
        standing: of the project.
        seconds_an_image: median time of an answer; None where none was measured.
    """
    labelled = sum(standing.labels_per_class.values())
    done = f"{labelled} of {standing.images} labelled" if labelled < standing.images else f"All {labelled} labelled"
    if standing.further:
        done += f", {standing.further} of them by too few readers"
    if standing.skipped:
        done += f", {standing.skipped} skipped and still offered to other readers"
    if not standing.left:
        return f"{done}." if labelled + standing.skipped >= standing.images else f"{done}, none left to read."
    if seconds_an_image is None:
        return f"{done}, {standing.left} left to read."
    return f"{done}, {in_minutes(seconds_an_image * standing.left / 60)} of reading left."


def next_answer(missing: int, left: int | None, *, trains: bool) -> str:
    """When the next round begins by itself.

    Args:
        missing: labels until then.
        left: images that a reader may be served; None where that is not known.
        trains: whether it will train a network.
    """
    what = "training" if trains else "round"
    if not missing:
        return f"The next {what} is due."
    if left is None or missing <= left:
        return f"Next {what} in {count(missing, 'label')}."
    if not left:
        return ""
    return f"{count(left, 'image')} left, too few for the {missing} labels of the next {what}: use “Train now”."


def learning_answer(rounds: Sequence[RoundSummary], unit: int = 20) -> str:
    """Whether the network learns: its newest accuracy against that of the first network; empty before the first.

    "Yes" and "No" where the 95 % interval of the difference excludes 0; "Probably" where it does not and the curve
    rises beyond the 95 % interval of its slope; "Not lately" where it falls beyond it. For the curve only accuracies on
    30 validation images or more count. The interval is that of independent images, and the two networks share
    validation images in part: it is rather too wide.

    Args:
        rounds: of the project, oldest first; those with other classes than the newest network's do not count.
        unit: labels that a change of the accuracy is given for.
    """
    trained = same_classes([one for one in rounds if one.trained])
    known = [(one.labels, one.fit) for one in trained if one.fit is not None]
    fits = [fit for _, fit in known]
    if not fits:
        return ""
    first, last = fits[0], fits[-1]
    n, n_first = last.validation_images, first.validation_images
    now = f"right for {share_words(last.validation_accuracy, n)} of {n} validation images"
    if len(fits) == 1:
        return f"Too early to tell: 1 network trained so far, 2 are needed; it is {now}."
    difference = last.validation_accuracy - first.validation_accuracy
    low, high = newcombe(_correct(last), n, _correct(first), n_first)
    begins = "Yes" if low > 0 else "No" if high < 0 else "Not clear yet"
    measured = [one for one in known if one[1].validation_images >= MIN_VALIDATION_IMAGES][-LEVEL_ROUNDS:]
    latest = [fit.validation_accuracy for _, fit in measured]
    level, lately = slope(latest, [fit.validation_images for _, fit in measured]), ""
    if level is not None and (level.rises or level.falls):
        times, of = label_unit([labels for labels, _ in measured], unit)
        lately = f"; lately it {'rose' if level.rises else 'fell'} by {100 * abs(level.per_round) * times:.2g} {of}"
        if level.rises and latest[-1] < latest[-2]:
            lately += ", though not in the newest round"
        if level.per_round < -level.margin and begins != "No":
            begins = "Not lately"
        elif level.per_round > level.margin and begins == "Not clear yet":
            begins = "Probably"
    needed = ""
    if begins == "Not clear yet" and difference >= SMALL_DIFFERENCE:
        if (enough := _images_to_show(first, last)) is None:
            needed = f"; against the first network's {n_first} images no gain of this size can show"
        else:
            needed = f"; against the first network's {n_first} images a gain of this size shows from about {enough} on"
    # Of the rounded shares: a reader subtracts those that the page shows.
    points = abs(round(100 * last.validation_accuracy) - round(100 * first.validation_accuracy))
    than = f"{points} points {'more' if difference >= 0 else 'less'} than" if points else "as often as"
    interval = f"(95 % interval {100 * low:+.0f} to {100 * high:+.0f})".replace("-", "−")
    return f"{begins}: {now}, {than} the first network {interval}{lately}{needed}."


def _correct(fit: FitReport) -> int:
    return round(fit.validation_accuracy * fit.validation_images)


def _images_to_show(first: FitReport, last: FitReport) -> int | None:
    """Images of the newest network, in tens, at which the interval of the difference excludes 0; None: at no number."""
    images, share = range(last.validation_images // 10 * 10 + 10, MOST_IMAGES, 10), last.validation_accuracy
    before = (_correct(first), first.validation_images)
    return next((n for n in images if newcombe(round(share * n), n, *before)[0] > 0), None)


def confusion_answer(confusion: Confusion) -> str:
    """Which class is most often taken for which other.

    Args:
        confusion: of one round; at least one image.
    """
    of_label = {label: sum(row.values()) for label, row in confusion.items()}
    wrong = [(n, label, name) for label, row in confusion.items() for name, n in row.items() if name != label and n]
    if not wrong:
        return f"It confuses nothing: right about all {sum(of_label.values())} images."
    most = max(n for n, _, _ in wrong)
    ties = [
        f"'{label}' for '{name}': {n} of {of_label[label]} images of '{label}'" for n, label, name in wrong if n == most
    ]
    return f"Most often it takes {', and '.join(ties[:3])}{' (others as often)' if ties[3:] else ''}."


def calibration_answer(control: HoldoutEstimate | None) -> str:
    """Whether the network is right as often as its probabilities say; empty where there are too few holdout images."""
    if control is None or control.ece is None:
        return ""
    sure, right = sum(one.n * one.confidence for one in control.bins) / control.n, control.correct / control.n
    low, high = wilson(control.correct, control.n)
    begins = "Too sure" if sure > high else "Not sure enough" if sure < low else "Not clearly wrong"
    return (
        f"{begins}: on average {100 * sure:.0f} % sure of its prediction, and right for {100 * right:.0f} % "
        f"({100 * low:.0f} to {100 * high:.0f}) of the last {control.n} random images. Expected calibration error "
        f"{control.ece:.2f}."
    )


def pays_answer(
    control: HoldoutEstimate | None,
    proof: ActiveAgainstRandom | None,
    *,
    control_share: float,
    strategy: str,
    left: int | None,
) -> str:
    """Whether chosen labels teach more than random ones.

    Args:
        control: accuracy on holdout images; None where no round had a holdout.
        proof: the last comparison; None where none was made.
        control_share: of the project now.
        strategy: likewise.
        left: images without a label; None where that is not known.
    """
    if proof is not None:
        chosen, random = (100 * one / proof.images for one in (proof.active_correct, proof.random_correct))
        begins = "Yes" if proof.low > 0 else "No" if proof.high < 0 else "Not clear yet"
        return (
            f"{begins}: trained on chosen labels the network was right for {chosen:.0f} % of {proof.images} random "
            f"images, on as many random labels for {random:.0f} %: {100 * proof.difference:+.0f} points (95 % interval "
            f"{100 * proof.low:+.0f} to {100 * proof.high:+.0f}).".replace("-", "−")
        )
    total = 0 if control is None else control.total
    missing = MIN_HOLDOUT_IMAGES - total
    if strategy == "random":
        return "Nothing to compare: the strategy is random, so no image is chosen."
    if missing <= 0:
        return f"Ready to compare: {total} random images have a label. Ask your operator to run ml-backend proof."
    have = f"{count(total, 'random image')} {'has' if total == 1 else 'have'} a label"
    have += f", {MIN_HOLDOUT_IMAGES} are needed to compare"
    share = sufficient_share(missing, control_share, left)
    if share is not None and share == control_share:
        return f"Not known yet: {have}, about {round(missing / share)} more labels."
    now = f"too few of the {left} left come at control_share={control_share}" if control_share else "none is drawn"
    if share is not None:
        enough = f"about {round(missing / share)} more labels are enough"
        return f"Not measured: {have}, and {now}. With the option control_share={share}, {enough}."
    return (
        f"Cannot be measured with the {count(left or 0, 'image')} left: {have}, and at most every second image is "
        "drawn at random (control_share=0.5). Importing more images could change that."
    )


def sufficient_share(missing: int, control_share: float, left: int | None) -> float | None:
    """The present ``control_share`` or the least recommended one above it that draws the missing images; None: none.

    Args:
        missing: holdout images, above 0.
        control_share: of the project now.
        left: images without a label; None where that is not known.
    """
    shares = (one for one in sorted({control_share, *CONTROL_SHARES}) if one and one >= control_share)
    return next((one for one in shares if left is None or round(missing / one) <= left), None)
