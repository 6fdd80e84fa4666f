"""Validation errors in words: every wrong key and value, where each came from, and what is allowed."""

from collections.abc import Callable, Iterable, Mapping, Set

from pydantic import ValidationError

__all__ = ["explain"]



def explain(
    error: ValidationError,
    known: Iterable[str],
    spell: Callable[[str], str],
    origin: Mapping[str, str] | None = None,
    secret: Set[str] = frozenset(),
) -> str:
    """One line a mistake: the key, the value seen, what is allowed.

    Args:
        error: of a model without models in it.
        known: the model's keys.
        spell: turns a key of the model into its name outside.
        origin: where the value of a key came from, where there are several sources.
        secret: keys whose values are not repeated.
    """
    lines: dict[str, str] = {}
    for mistake in error.errors():
        if mistake["type"] == "default_factory_not_called":  # a consequence of the others
            continue
        key = str(mistake["loc"][0])
        name = _shortened(spell(key))
        source = f" (from {origin[key]})" if origin and key in origin else ""
        if mistake["type"] == "extra_forbidden":
            lines[key] = f"{name}{source}: no such option; known are {', '.join(known)}"
            continue
        # A union reports one mistake per member: gather them in one line.
        wanted = mistake["msg"].removeprefix("Value error, ")
        if key in lines:
            lines[key] += f", or {wanted[0].lower()}{wanted[1:]}"
        else:
            seen = "(not shown)" if key in secret else _shortened(repr(mistake["input"]))
            lines[key] = f"{name}={seen}{source}: {wanted[0].lower()}{wanted[1:]}"
    return "; ".join(lines.values())


def _shortened(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
