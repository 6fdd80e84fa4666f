"""Which image is on which side of a study, and which stay when a class shall be rarer than it is."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from ml_backend.acquisition import seeded_order
from ml_backend.errors import SettingsError
from ml_backend.grouping import groups_of
from ml_backend.records import ImageRef
from ml_backend.simulation.tables import SIDES, Side, first_ten

__all__ = ["check_sides", "shares_reached", "split_by_patient"]


def split_by_patient(
    images: Sequence[ImageRef], truth: Mapping[str, str], seed: int, shares: tuple[float, float, float]
) -> dict[str, Side]:
    """Draw a side for every patient (every image where the patient is unknown), alike in all classes.

    The patients come in a random order that follows from the seed and their names, those with many images first, since
    they fit least well at the end. Each goes where it brings the images of its classes nearest to what the side shall
    have, by ``sum_c (have_c - wanted_c)^2 / wanted_c``, under which all sides fill at one pace.

    Args:
        images: in any order.
        truth: image id -> class.
        seed: the same seed draws the same sides, however the images are arranged.
        shares: of the images, for train, val and test; val may be 0.

    Returns:
        Image id -> side.

    Raises:
        SettingsError: the shares do not sum to 1, or train or test has none.
    """
    if min(shares[0], shares[2]) <= 0 or shares[1] < 0 or not math.isclose(sum(shares), 1.0, abs_tol=1e-6):
        raise SettingsError(
            f"shares of train, val and test are {shares}: they must sum to 1, train and test above 0, val 0 or above"
        )
    used = [(side, share) for side, share in zip(SIDES, shares, strict=True) if share > 0]
    classes = {name: column for column, name in enumerate(sorted(set(truth.values())))}
    group_of = groups_of(images)
    groups: dict[str, list[ImageRef]] = {}
    for image in images:
        groups.setdefault(group_of[image.id], []).append(image)
    names = list(groups)
    in_turn = [names[place] for place in seeded_order([f"side of {name}" for name in names], seed)]
    in_turn.sort(key=lambda name: -len(groups[name]))
    counts = {
        name: np.bincount([classes[truth[image.id]] for image in members], minlength=len(classes))
        for name, members in groups.items()
    }
    wanted = np.outer([share for _, share in used], np.sum(list(counts.values()), axis=0))
    have = np.zeros_like(wanted)
    split: dict[str, Side] = {}
    for name in in_turn:
        more = counts[name]
        # What the group adds to the sum: ((have + more - wanted)^2 - (have - wanted)^2) / wanted.
        worse = ((more * more + 2 * more * (have - wanted)) / wanted).sum(axis=1)
        row = int(worse.argmin())
        have[row] += more
        split.update(dict.fromkeys([image.id for image in groups[name]], used[row][0]))
    return split


def shares_reached(
    truth: Mapping[str, str],
    split: Mapping[str, Side],
    classes: Sequence[str],
    imbalance: Mapping[str, float],
    seed: int,
) -> list[str]:
    """Choose as many images as may stay if some classes shall have a given share of every side.

    Classes without a wish keep their proportions among each other. Where a class has too many images, some of it go;
    where it has too few, some of the others. Which ones follows from the seed and their ids alone, and a smaller share
    keeps some of those that a larger one keeps.

    Args:
        truth: image id -> class.
        split: image id -> side.
        classes: all of them.
        imbalance: class -> share on each side, above 0 and below 1.
        seed: of the subsampling.

    Returns:
        Ids of the images that stay, on each side within half an image a class of the shares.

    Raises:
        SettingsError: a class is unknown, the shares do not sum to 1 (or leave nothing for the other classes), or a
            class would have no image left on a side; says how many there are.
    """
    _check_shares(classes, imbalance)
    kept: list[str] = []
    for side in SIDES:
        members = {name: [i for i, value in truth.items() if value == name and split[i] == side] for name in classes}
        if not any(members.values()):
            continue
        counts = {name: len(ids) for name, ids in members.items()}
        quotas = _quotas(counts, imbalance)
        if gone := [name for name in classes if not quotas[name] and (counts[name] or name in imbalance)]:
            asked = ", ".join(f"{name}={share:g}" for name, share in imbalance.items())
            there = ", ".join(f"{count} {name}" for name, count in counts.items())
            raise SettingsError(
                f"the shares {asked} cannot be reached on the {side} side, which holds {there}: no image of "
                f"{' and '.join(gone)} would be left; ask for a share nearer to what is there"
            )
        for name, ids in members.items():
            # Not the bare ids: the strategy `random` orders by those, and would find what stays all at the front.
            order = seeded_order([f"kept {image_id}" for image_id in ids], seed)
            kept += [ids[place] for place in order[: quotas[name]]]
    return kept


def check_sides(
    images: Sequence[ImageRef], truth: Mapping[str, str], split: Mapping[str, Side], classes: Sequence[str]
) -> None:
    """Make sure that the sides are apart and that train and test can be learnt from and measured on.

    Raises:
        SettingsError: an image is there twice, or has no class or no side, a patient has images on two sides, or train
            or test lacks a class; names them.
    """
    ids = [image.id for image in images]
    if len(set(ids)) != len(ids) or set(ids) != set(truth) or set(ids) != set(split):
        odd = sorted(set(ids) ^ set(truth) | set(ids) ^ set(split)) or [i for i, n in Counter(ids).items() if n > 1]
        raise SettingsError(f"images, true classes and sides do not belong together: {first_ten(odd, ', ')}")
    group_of = groups_of(images)
    sides_of: dict[str, set[Side]] = {}
    for image in images:
        sides_of.setdefault(group_of[image.id], set()).add(split[image.id])
    if torn := sorted(group for group, sides in sides_of.items() if len(sides) > 1):
        where = [f"{group} ({', '.join(side for side in SIDES if side in sides_of[group])})" for group in torn]
        raise SettingsError(
            f"{len(torn)} patients have images on more than one side: {first_ten(where, ', ')}; put all images of a "
            "patient on one side, or remove the column split"
        )
    for side in ("train", "test"):
        there = {truth[image_id] for image_id in ids if split[image_id] == side}
        if lost := [name for name in classes if name not in there]:
            patients = len({group_of[image.id] for image in images if truth[image.id] in lost})
            raise SettingsError(
                f"the {side} side has no image of class {' or '.join(map(repr, lost))}, of which there are images of "
                f"{patients} patients in all: give more of them, another split, or leave the class out of --task"
            )


def _check_shares(classes: Sequence[str], imbalance: Mapping[str, float]) -> None:
    if unknown := [name for name in imbalance if name not in classes]:
        raise SettingsError(f"imbalance of {', '.join(map(repr, unknown))}: the classes are {', '.join(classes)}")
    total, free = sum(imbalance.values()), [name for name in classes if name not in imbalance]
    fits = total < 1.0 - 1e-6 if free else math.isclose(total, 1.0, abs_tol=1e-6)
    if not fits or not all(0.0 < share < 1.0 for share in imbalance.values()):
        wanted = f"sum to less than 1, to leave room for {', '.join(free)}" if free else "sum to 1"
        asked = ", ".join(f"{name}={share:g}" for name, share in imbalance.items())
        raise SettingsError(f"imbalance {asked}: shares must lie above 0 and below 1 and {wanted}")


def _quotas(counts: Mapping[str, int], imbalance: Mapping[str, float]) -> dict[str, int]:
    """Images of each class that may stay: as many as the scarcest class, measured by its share, allows."""
    free = sum(count for name, count in counts.items() if name not in imbalance)
    left = 1.0 - sum(imbalance.values())
    shares = {name: imbalance.get(name, left * count / max(free, 1)) for name, count in counts.items()}
    total = min(count / shares[name] for name, count in counts.items() if shares[name] > 0)
    if not free and left > 1e-6:  # nobody is there to take what the wishes leave
        total = 0.0
    return {name: min(counts[name], math.floor(total * share + 0.5)) for name, share in shares.items()}
