"""95 % intervals of shares that were counted, and of the difference of two."""

from math import hypot

__all__ = ["newcombe", "wilson"]

_Z = 1.959963984540054  # of a 95 % interval


def wilson(correct: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share; 0 to 1 where nothing was counted.

    Source:
        Wilson 1927, doi:10.1080/01621459.1927.10502953.
    """
    if n == 0:
        return 0.0, 1.0
    share, z2 = correct / n, _Z * _Z
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * ((share * (1 - share) + z2 / (4 * n)) / n) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


def newcombe(correct: int, n: int, before: int, n_before: int) -> tuple[float, float]:
    """95 % interval of the difference of two independent shares, ``correct / n - before / n_before``; within -1 to 1.

    Args:
        correct: of ``n`` counted, above 0.
        n: how many were counted.
        before: of ``n_before`` others, above 0.
        n_before: how many they are.

    Source:
        Newcombe 1998, doi:10.1002/(SICI)1097-0258(19980430)17:8<873::AID-SIM779>3.0.CO;2-I, method 10.
    """
    share, share_before = correct / n, before / n_before
    low, high = wilson(correct, n)
    low_before, high_before = wilson(before, n_before)
    difference = share - share_before
    # It does not lead out of them by itself, but for rounding.
    return (
        max(-1.0, difference - hypot(share - low, high_before - share_before)),
        min(1.0, difference + hypot(high - share, share_before - low_before)),
    )
