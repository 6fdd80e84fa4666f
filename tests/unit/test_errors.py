"""The tree that the docstring draws is the tree that the classes are."""

import inspect
import re

import pytest

from ml_backend import errors
from ml_backend.errors import BackendError


def drawn_tree() -> dict[str, tuple[str | None, int | None]]:
    """Read the docstring: class -> its parent and the HTTP status beside it."""
    tree: dict[str, tuple[str | None, int | None]] = {}
    parents: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if not (match := re.match(r"    ([│├└─ ]*)([A-Z][A-Za-z]+)  +\S", line)):
            continue
        depth = len(match[1]) // 4
        status = re.search(r"\((\d{3})\)$", line)
        parents[depth:] = [match[2]]
        tree[match[2]] = (parents[depth - 1] if depth else None, int(status[1]) if status else None)
    return tree


def defined_classes() -> dict[str, type[BackendError]]:
    return {
        name: kind
        for name, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, BackendError) and kind.__module__ == errors.__name__
    }


class TestTree:
    def test_every_class_is_drawn_and_exported(self):
        """Neither a class that nobody drew nor a drawn one that is gone."""
        assert set(drawn_tree()) == set(defined_classes())

    @pytest.mark.parametrize("name", [name for name, (parent, _) in drawn_tree().items() if parent])
    def test_parents_are_as_drawn(self, name):
        """The class above in the drawing is the base class."""
        parent, _ = drawn_tree()[name]

        assert defined_classes()[name].__bases__ == (defined_classes()[str(parent)],)

    def test_status_is_as_drawn(self):
        """A status beside a class is the one that the server answers; without one it is 500."""
        drawn = {name: status or 500 for name, (_, status) in drawn_tree().items()}

        assert {name: kind.http_status for name, kind in defined_classes().items()} == drawn
