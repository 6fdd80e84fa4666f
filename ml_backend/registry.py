"""Extension points: acquisition functions, backbones, consensus rules and image sources, by name.

An installed package adds one through an entry point of the group ``ml_backend.acquisition``, ``ml_backend.backbones``,
``ml_backend.consensus`` or ``ml_backend.image_sources``. Names and descriptions are read without importing the code
behind them, so the web process lists every acquisition function and never loads torch.
"""

import ast
import inspect
import logging
import sys
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, cast, get_args

from ml_backend.errors import SettingsError, did_you_mean

_log = logging.getLogger(__name__)

Group = Literal["acquisition", "backbones", "consensus", "image_sources"]
"""What an installed package can add; the entry-point group is ``ml_backend.<group>``."""

Need = Literal["probs", "features", "gradients"]
"""What a learner computes for an acquisition function: softmax outputs of the passes, backbone features (of the
labelled images too), or the factors of the last layer's gradients."""

_NEEDED: Final[dict[Need, str]] = {
    "features": "backbone features",
    "gradients": "last layer's gradients",
    "probs": "probabilities of the passes",
}

PASSES_PER_PICK: Final = 5
"""Of ``batch_bald``; T passes hold at most log T nats, so that with fewer the last picks of a batch add nothing."""


def few_passes(strategy: str, passes: int, batch_size: int) -> str:
    """A warning where ``batch_bald`` has too few passes for its batch; empty otherwise."""
    if strategy != "batch_bald" or passes >= (wanted := PASSES_PER_PICK * batch_size):
        return ""
    return (
        f"With passes={passes} the last images of a batch of {batch_size} are little better than random ones: set "
        f"passes={wanted}, or batch_size={passes // PASSES_PER_PICK}."
    )


F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class StrategySpec:
    """Specification of an acquisition function.

    Attributes:
        name: the value of the option ``strategy``.
        summary: which images it labels first.
        unit: of a score.
        range: of a score, for C classes and T passes.
        source: publication.
        requires: inputs that the learner computes for it.
        min_passes: least number of stochastic passes; with fewer, all scores would be equal.
        batch: whether it is called with the whole pool, the batch size and the seed, see ``acquisition_function``.
        target: ``module:function`` that holds it.

    Raises:
        ValueError: a text is empty, a requirement is unknown, or fewer than 1 pass is required.
    """

    name: str
    summary: str
    unit: str
    range: str
    source: str
    requires: Set[Need] = frozenset({"probs"})
    min_passes: int = 1
    batch: bool = False
    target: str = ""

    def __post_init__(self) -> None:
        for name in ("name", "summary", "unit", "range", "source"):
            text = getattr(self, name)
            if not isinstance(text, str) or not text or "|" in text or "\n" in text:
                raise ValueError(
                    f"{name} of acquisition function {self.name!r} must be one line without |, got {text!r}"
                )
        if unknown := set(self.requires) - set(get_args(Need)):
            raise ValueError(
                f"{self.name}: unknown requirement {min(unknown)!r}: known are {', '.join(get_args(Need))}"
            )
        if self.min_passes < 1:
            raise ValueError(f"{self.name}: min_passes must be at least 1, got {self.min_passes}")

    @property
    def needs(self) -> frozenset[Need]:
        """Inputs that the learner computes for it."""
        return frozenset(self.requires)

    @property
    def needed(self) -> str:
        """The same in words."""
        return " and ".join(_NEEDED[need] for need in sorted(self.requires)) or "nothing"


def acquisition_function(
    name: str,
    *,
    summary: str,
    unit: str,
    range: str,  # noqa: A002 - the word of the specification
    source: str,
    requires: Set[Need] = frozenset({"probs"}),
    min_passes: int = 1,
    batch: bool = False,
) -> Callable[[F], F]:
    """Declare the specification of an acquisition function.

    The decorated function takes its required inputs as keywords (``probs`` [images, passes, classes], ``features``
    [images, dims], ``gradients``), torch tensors, and returns one score per image, higher = label first, as a tensor,
    array or list. With ``batch=True`` it is called as ``function(inputs, batch_size, seed)`` with
    ``AcquisitionInputs``, and returns such scores, or a ``Selection`` whose picks come first.

    Args:
        name: the value of the option ``strategy``; of a plug-in, the name of its entry point.
        summary: which images it labels first, in one line.
        unit: of a score.
        range: of a score, for C classes and T passes.
        source: publication.
        requires: inputs that the learner computes for it.
        min_passes: least number of stochastic passes; with fewer, all scores would be equal.
        batch: see above.

    The arguments must be literals: they are read from the source file, without importing it.
    """
    StrategySpec(name, summary, unit, range, source, requires, min_passes, batch)

    def unchanged(function: F) -> F:
        return function

    return unchanged


def plugins(group: Group) -> dict[str, EntryPoint]:
    """Entry points that installed packages declare for a group, by name, in the order of the names."""
    found = {point.name: point for point in entry_points(group=f"ml_backend.{group}")}
    return dict(sorted(found.items()))


def load_plugin(group: Group, name: str) -> Any:
    """Import the object behind an entry point.

    Raises:
        SettingsError: no installed package has an entry point of that name, or importing it fails.
    """
    if (point := plugins(group).get(name)) is None:
        raise SettingsError(f"no installed package has an entry point {name!r} in the group ml_backend.{group}")
    try:
        return point.load()
    except Exception as error:
        raise SettingsError(f"entry point {name} = {point.value} cannot be loaded: {error}") from error


def build_plugin(group: Group, name: str, *arguments: Any) -> Any:
    """Import the object behind an entry point, and call it.

    Raises:
        SettingsError: see ``load_plugin``, or the call fails.
    """
    plugin = load_plugin(group, name)
    try:
        return plugin(*arguments)
    except Exception as error:
        raise SettingsError(f"entry point {name} of the group ml_backend.{group} fails: {error}") from error


def load_acquisition_function(name: str) -> Callable[..., Any]:
    """Import the function of a strategy.

    Raises:
        ValueError: there is no strategy of that name.
        SettingsError: importing it fails.
    """
    module, _, function = strategy_spec(name).target.partition(":")
    try:
        return cast("Callable[..., Any]", getattr(import_module(module), function))
    except Exception as error:
        raise SettingsError(f"acquisition function {name} ({module}:{function}) cannot be loaded: {error}") from error


def add_function(target: str) -> str:
    """Make an importable function a strategy of this process, by the name ``module:function``.

    Its specification is that of ``acquisition_function``; a function without one takes ``probs`` and nothing else. The
    working directory is searched too. It imports code by name: never call it with a name that came over the network.

    Returns:
        The source text of the function.

    Raises:
        SettingsError: it cannot be imported, has no source, or takes no ``probs``.
    """
    module, _, name = target.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        function = getattr(import_module(module), name)
        source = inspect.getsource(function)
        spec = next(_declared(source, module), None)
        if spec is None:
            spec = StrategySpec(target, "a function of this study", "score", "any", target, target=target)
            inspect.signature(function).bind(probs=None)
    except Exception as error:
        raise SettingsError(
            f"strategy {target!r} cannot be used: {error}; expected module:function, importable from {here} or "
            "installed, with @acquisition_function or of the one argument probs"
        ) from error
    STRATEGIES[target] = replace(spec, name=target)
    return source


def strategy_spec(name: str) -> StrategySpec:
    """Specification of an acquisition function.

    Raises:
        ValueError: there is none of that name; the known ones are listed.
    """
    if name not in STRATEGIES:
        raise ValueError(
            f"unknown strategy {name!r}: known are {', '.join(STRATEGIES)}{did_you_mean(name, STRATEGIES)}"
        )
    return STRATEGIES[name]


def markdown_table() -> str:
    """The acquisition functions of this package as the table that README shows."""
    rows = [
        f"| `{spec.name}` | {spec.summary} | {spec.range} ({spec.unit}) | {spec.needed} | {spec.source} |"
        for spec in _built_in().values()
    ]
    return "\n".join(["| strategy | labels first | score | needs | source |", "|---|---|---|---|---|", *rows])


@cache
def _built_in() -> dict[str, StrategySpec]:
    folder = Path(__file__).parent / "acquisition"
    modules = {f"ml_backend.acquisition.{path.stem}": path.read_text(encoding="utf-8") for path in folder.glob("*.py")}
    found = [spec for module, source in modules.items() for spec in _declared(source, module)]
    return {spec.name: spec for spec in sorted(found, key=lambda spec: spec.name)}


def _added() -> dict[str, StrategySpec]:
    """Of installed packages. One that cannot be read is left out with a warning: the others still rank."""
    found = {}
    for name, point in plugins("acquisition").items():
        try:
            found[name] = _of_entry_point(point)
        except (ValueError, TypeError, OSError, SyntaxError) as error:
            _log.warning("acquisition function %s = %s is left out: %s", name, point.value, error)
    return found


def _of_entry_point(point: EntryPoint) -> StrategySpec:
    if point.name in _built_in():
        raise ValueError("ml_backend has an acquisition function of that name")
    # find_spec of a sub-module imports its parents, which may import torch: only the top-level package is looked up.
    top, *rest = point.module.split(".")
    if (package := find_spec(top)) is None or package.origin is None:
        raise ValueError(f"there is no module {top}")
    path = Path(package.origin)
    if rest:
        path = path.parent.joinpath(*rest)
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    target = f"{point.module}:{point.attr}"
    for spec in _declared(path.read_text(encoding="utf-8"), point.module):
        if spec.target == target:
            if spec.name != point.name:
                raise ValueError(f"its decorator names it {spec.name!r}")
            return spec
    raise ValueError(f"{path} has no function {point.attr} decorated with @acquisition_function")


def _declared(source: str, module: str) -> Iterator[StrategySpec]:
    """Specifications of the decorated functions in a source text."""
    for node in ast.parse(source).body:
        if not isinstance(node, ast.FunctionDef):
            continue
        for call in node.decorator_list:
            if (
                isinstance(call, ast.Call)
                and ast.unparse(call.func).rpartition(".")[2] == acquisition_function.__name__
            ):
                texts = [ast.literal_eval(value) for value in call.args]
                named = {word.arg: _literal(word) for word in call.keywords if word.arg is not None}
                yield StrategySpec(**dict(zip(_FIELDS, texts, strict=False)), **named, target=f"{module}:{node.name}")


def _literal(word: ast.keyword) -> Any:
    value = word.value
    if isinstance(value, ast.Call) and ast.unparse(value.func) in {"set", "frozenset"} and not value.keywords:
        return frozenset(ast.literal_eval(value.args[0])) if value.args else frozenset()
    try:
        return ast.literal_eval(value)
    except ValueError:
        raise ValueError(f"argument {word.arg} of @acquisition_function must be a literal") from None


_FIELDS: Final = tuple(field.name for field in fields(StrategySpec))

STRATEGIES: Final[dict[str, StrategySpec]] = dict(sorted((_built_in() | _added()).items()))
"""Every acquisition function, of this package and of installed ones, by name."""
