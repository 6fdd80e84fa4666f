"""Training and validation labels, separate by patient and stable from round to round; and the random holdout.

A share of a ranking's places goes to randomly drawn images, the holdout, which measures what the strategy gains.
"""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeAlias

from sklearn.model_selection import StratifiedGroupKFold

from ml_backend.acquisition import seeded_draws
from ml_backend.errors import TooFewLabels
from ml_backend.schemas import Label, Ranking, groups_of, natural_order

Sides: TypeAlias = tuple[tuple[Label, ...], tuple[Label, ...]]
"""Training and validation labels."""


def stable_split(labels: Sequence[Label], validation_share: float, seed: int) -> Sides:
    """Split by patient (by image where the patient is unknown), without a record of earlier splits.

    Images with the same address are never divided either; see ``schemas.groups_of``.

    Each patient draws a number in [0, 1) from the seed and the patient's name alone and is in validation below
    ``validation_share``. New labels cannot change that: a patient in validation stays there, and no network is
    validated on a patient that an earlier one was trained on. A quota per class would match the share more exactly, but
    every new patient would push others over the border.

    Only where the draws leave a class out of training, or out of validation although it has two patients, are
    patients moved, those nearest the border first. A moved patient may move back once the class has more patients; with
    25 patients a class and a share of 0.2, fewer than 1 class in 250 needs a move. Where patients with images of
    several classes make it impossible to serve every class, training comes first.

    Args:
        labels: in any order.
        validation_share: expected share of the patients, above 0 and below 1.
        seed: the same for all rounds of a project.

    Returns:
        Training and validation labels, each in the order of the image ids; neither is empty.

    Raises:
        TooFewLabels: no class has labels of two patients; says how many there are.
        ValueError: the share is not between 0 and 1.
    """
    if not 0.0 < validation_share < 1.0:
        raise ValueError(f"validation_share must lie above 0 and below 1, got {validation_share}")
    group_of = groups_of(label.image for label in labels)
    classes_of = _classes_of_groups(labels, group_of)
    groups = Counter(name for classes in classes_of.values() for name in classes)
    if max(groups.values(), default=0) < 2:
        found = ", ".join(f"{name}: {count}" for name, count in sorted(groups.items())) or "no label at all"
        raise TooFewLabels(
            f"{len(labels)} labels cannot be split into training and validation: some class needs labels of 2 patients "
            f"(or of 2 images without a patient id), got {found}; label more images"
        )
    draws = dict(zip(classes_of, (seeded_draws(list(classes_of), seed) / 2.0**64).tolist(), strict=True))
    drawn = _Validation(classes_of, groups, {group for group, draw in draws.items() if draw < validation_share})
    # Nearest the border first; the name breaks ties, not the order of arrival.
    drawn.serve_every_class(sorted(draws, key=lambda group: (abs(draws[group] - validation_share), group)))
    return _sides(labels, lambda label: group_of[label.image.id] in drawn.members)


def can_split(labels: Sequence[Label]) -> bool:
    """Whether ``stable_split`` can divide the labels: some class has labels of two patients."""
    found = _classes_of_groups(labels, groups_of(label.image for label in labels)).values()
    return max(Counter(name for classes in found for name in classes).values(), default=0) >= 2


def _classes_of_groups(labels: Sequence[Label], group_of: Mapping[str, str]) -> dict[str, set[str]]:
    classes_of: dict[str, set[str]] = {}
    for label in labels:
        classes_of.setdefault(group_of[label.image.id], set()).add(label.value)
    return classes_of


def fixed_split(validation_ids: Collection[str]) -> Callable[[Sequence[Label], float, int], Sides]:
    """A ``Splitter`` with fixed validation images: share and seed have no effect.

    Args:
        validation_ids: of the images that are in validation wherever they have a label; all others are trained on.
    """
    validation = frozenset(validation_ids)

    def split(labels: Sequence[Label], validation_share: float, seed: int) -> Sides:
        del validation_share, seed
        sides = _sides(labels, lambda label: label.image.id in validation)
        if not all(sides):
            raise TooFewLabels(
                f"{len(sides[0])} labels to train on and {len(sides[1])} of the {len(validation)} validation images: "
                "both need at least 1"
            )
        return sides

    return split


def fold_split(labels: Sequence[Label], folds: int, seed: int) -> tuple[Sides, ...]:
    """Split labels into folds by patient, each class spread over them as evenly as the patients allow.

    Args:
        labels: in any order.
        folds: wanted, 2 or more. As many are made as there are patients and labels of the largest class, if those are
            fewer, and so few that none is empty.
        seed: of the assignment of patients to folds.

    Returns:
        For every fold the labels of the others to train on, and its own to validate on, each in the order of the image
        ids.

    Raises:
        TooFewLabels: not even 2 folds are possible; says how many labels there are.

    Source:
        scikit-learn's ``StratifiedGroupKFold``.
    """
    in_order = _sorted(labels)
    group_of = groups_of(label.image for label in labels)
    groups, values = [group_of[label.image.id] for label in in_order], [label.value for label in in_order]
    most = max(Counter(values).values(), default=0)
    for count in range(min(folds, len(set(groups)), most), 1, -1):
        splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed % 2**32)
        with warnings.catch_warnings():
            # A class with fewer labels than folds: some folds validate without it, all but one train on it.
            warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
            sides = list(splitter.split(values, values, groups))
        if all(len(validation) for _, validation in sides):
            return tuple(
                (tuple(in_order[i] for i in train), tuple(in_order[i] for i in validation))
                for train, validation in sides
            )
    raise TooFewLabels(
        f"{len(labels)} labels of {len(set(groups))} patients, at most {most} of a class, cannot be split into folds: "
        "at least 2 patients and 2 labels of a class are needed; label more images"
    )


def _sorted(labels: Sequence[Label]) -> list[Label]:
    return sorted(labels, key=lambda label: natural_order(label.image.id))


def _sides(labels: Sequence[Label], in_validation: Callable[[Label], bool]) -> Sides:
    in_order = _sorted(labels)
    return (
        tuple(label for label in in_order if not in_validation(label)),
        tuple(label for label in in_order if in_validation(label)),
    )


class _Validation:
    """The groups in validation, and the classes that are missing from training or validation.

    Args:
        classes_of: classes among the labels of each group (patient, or image).
        groups: number of groups with labels of each class.
        members: groups in validation by their own draw.
    """

    def __init__(self, classes_of: Mapping[str, set[str]], groups: Mapping[str, int], members: set[str]) -> None:
        self.members = frozenset(members)
        self._classes_of = classes_of
        self._groups = groups
        self._inside = Counter(name for group in members for name in classes_of[group])

    def serve_every_class(self, nearest_first: Sequence[str]) -> None:
        """Move as few groups as leave no class without a side that it could have.

        A move may take a side from another class, which is then served in its turn. Each group moves at most once, so
        this ends; the best state on the way is kept.
        """
        best, fewest = self.members, self._unserved()
        movable = list(nearest_first)
        while group := self._next_move(movable):
            step = -1 if group in self.members else 1
            self._inside.update(dict.fromkeys(self._classes_of[group], step))
            self.members ^= {group}
            movable.remove(group)
            if (unserved := self._unserved()) < fewest:
                best, fewest = self.members, unserved
        self.members = best

    def _next_move(self, movable: Sequence[str]) -> str | None:
        # Training first: a class that is never trained on is lost, one that is never validated on only unmeasured.
        for missing, in_validation in ((self._untrained(), True), (self._unvalidated(), False)):
            for name in missing:
                candidates = [
                    group
                    for group in movable
                    if name in self._classes_of[group] and (group in self.members) == in_validation
                ]
                if candidates:
                    return min(candidates, key=self._harm)  # of equals the first, hence the nearest
        return None

    def _harm(self, group: str) -> int:
        """Number of classes that moving this group would leave without a side; training counts twice."""
        classes = self._classes_of[group]
        if group in self.members:
            return sum(self._inside[name] == 1 and self._groups[name] > 1 for name in classes)
        return sum(2 * (self._inside[name] == self._groups[name] - 1) for name in classes)

    def _untrained(self) -> list[str]:
        return sorted(name for name, count in self._groups.items() if self._inside[name] == count)

    def _unvalidated(self) -> list[str]:
        return sorted(name for name, count in self._groups.items() if count > 1 and not self._inside[name])

    def _unserved(self) -> tuple[bool, int]:
        one_side_empty = not 0 < len(self.members) < len(self._classes_of)
        return one_side_empty, 2 * len(self._untrained()) + len(self._unvalidated())


# Salts: draws independent of the order of ``random``, of every tie, and of each other.
IMAGES, PLACES = "control images ", "control places "


def mix_in_holdout(ranking: Ranking, share: float, seed: int, round_id: str) -> Ranking:
    """Give a share of the places to randomly drawn images.

    The images are the first of one permutation of all images of a project, fixed by the seed. They are removed from
    the strategy's order before it fills the other places: to skip images that the strategy has placed already would
    leave a sample of those it rejects. Labels and strategies do not change the permutation, so in whichever round its
    images are labelled, they are a uniform sample of the images available then.

    Args:
        ranking: of the whole pool. A ranking by ``random`` is returned unchanged: all of it is random.
        share: of the places, 0 to 0.5; at 0 the ranking is returned unchanged.
        seed: of the images and of the places.
        round_id: each round draws other places.

    Returns:
        The same images with the same scores, which need not fall any more; ``control`` names the randomly drawn ones
        in the order of the ranking.

    Raises:
        ValueError: the share is below 0 or above 0.5.
    """
    ids = ranking.image_ids
    places = set(holdout_places(len(ids), share, seed, round_id))
    if not places or ranking.strategy == "random":
        return ranking
    draws = seeded_draws(ids, seed, IMAGES).tolist()
    # The id breaks ties.
    holdout = [image_id for _, image_id in sorted(zip(draws, ids, strict=True))[: len(places)]]
    drawn = set(holdout)
    from_holdout, from_strategy = iter(holdout), (image_id for image_id in ids if image_id not in drawn)
    order = [next(from_holdout if place in places else from_strategy) for place in range(1, len(ids) + 1)]
    scores = dict(zip(ids, ranking.scores, strict=True))
    return ranking.model_copy(
        update={
            "image_ids": tuple(order),
            "scores": tuple(scores[image_id] for image_id in order),
            "control": tuple(holdout),
        }
    )


def holdout_places(length: int, share: float, seed: int, round_id: str) -> list[int]:
    """The places of a ranking that the holdout takes, ascending, from 1.

    One, drawn by the seed, of every ``1 / share`` consecutive places: among the first k places their number differs
    from ``k * share`` by less than one, and still no place can be predicted.

    Raises:
        ValueError: the share is below 0 or above 0.5.
    """
    if not 0.0 <= share <= 0.5:
        raise ValueError(f"control_share must lie between 0 and 0.5, got {share}")
    if share == 0.0:
        return []
    most = math.ceil(length * share) + 1
    draws = seeded_draws([str(number) for number in range(most)], seed, f"{PLACES}{round_id} ").tolist()
    places: list[int] = []
    for number, draw in enumerate(draws):
        before, last = math.floor(number / share), math.floor((number + 1) / share)
        if before < length and (place := before + 1 + draw % (last - before)) <= length:
            places.append(place)
    return places
