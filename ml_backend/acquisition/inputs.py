"""What a ranker may look at, checked once, so that the rankers themselves need not."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar

from jaxtyping import Float
from torch import Tensor

from ml_backend.acquisition.arrays import float_tensor, require_probabilities
from ml_backend.registry import Need

Value = TypeVar("Value")

_WAY_OUT: Final[dict[Need, str]] = {
    "probs": "pass probs, the softmax outputs of the dropout passes [images, passes, classes]",
    "features": "pass features, the pooled backbone features [images, dims], and labelled_features where there are any",
    "gradients": "pass gradients, the residuals [images, classes] and hidden outputs [images, dims] of its last layer",
}


class Gradients(NamedTuple):
    """Gradients of the last layer's weights in factors: that of image i is ``residuals[i] ⊗ hidden[i]``."""

    residuals: Float[Tensor, "images classes"]
    """Softmax output minus 1 for the most probable class."""
    hidden: Float[Tensor, "images dims"]
    """What the last layer sees."""


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """A pool as its ranker sees it.

    Attributes:
        ids: one distinct id an image.
        probs: softmax outputs of the stochastic passes.
        features: of the pool.
        labelled_features: of the images that have a label.
        gradients: of the last layer.

    Raises:
        ValueError: the ids are not distinct, a shape does not fit them, or a value is NaN or infinite (the first such
            image is named).
    """

    ids: Sequence[str]
    probs: Float[Tensor, "images passes classes"] | None = None
    features: Float[Tensor, "images dims"] | None = None
    labelled_features: Float[Tensor, "labelled dims"] | None = None
    gradients: Gradients | None = None

    def __post_init__(self) -> None:
        if self.probs is not None:
            require_probabilities(self.probs, self.ids)
        if self.features is not None:
            _require_rows("features", self.features, self.ids)
        if self.gradients is not None:
            _require_rows("residuals", self.gradients.residuals, self.ids)
            _require_rows("hidden", self.gradients.hidden, self.ids)
        if self.labelled_features is not None and len(self.labelled_features):
            labelled = [f"labelled {place}" for place in range(len(self.labelled_features))]
            _require_rows("labelled_features", self.labelled_features, labelled)
            self._require_same_dims(self.labelled_features)
        if len(set(self.ids)) != len(self.ids):
            raise ValueError(
                f"{len(self.ids)} ids, but only {len(set(self.ids))} distinct: an image stands in a pool once"
            )

    def _require_same_dims(self, labelled: Tensor) -> None:
        if self.features is not None and labelled.shape[1] != self.features.shape[1]:
            raise ValueError(
                f"labelled_features have {labelled.shape[1]} dims but features {self.features.shape[1]}: "
                "take both from one network"
            )


def evidence_of(
    ids: Sequence[Any] | None, *, probs: Any, features: Any, labelled_features: Any, gradients: Any
) -> Evidence:
    """The evidence from a caller's arrays: detached, dense and of a floating type; the arrays stay as they are.

    Args:
        ids: one distinct id an image; positions count as ids where there are none.
        probs: see ``catalog.rank``; like the others a tensor or a NumPy array, or None.
        features: likewise.
        labelled_features: likewise.
        gradients: likewise; its ``residuals`` and ``hidden`` are read.

    Raises:
        ValueError: see ``Evidence`` and ``arrays.float_tensor``.
    """
    probs = None if probs is None else float_tensor("probs", probs)
    features = None if features is None else float_tensor("features", features)
    if labelled_features is not None:
        labelled_features = float_tensor("labelled_features", labelled_features)
    if gradients is not None:
        if not hasattr(gradients, "residuals") or not hasattr(gradients, "hidden"):
            raise ValueError(
                f"gradients must be Gradients(residuals, hidden), the gradients in factors, got "
                f"{type(gradients).__name__}"
            )
        hidden = float_tensor("hidden", gradients.hidden)
        gradients = Gradients(float_tensor("residuals", gradients.residuals).to(hidden.device), hidden)
    if ids is None:
        rows = next((rows for rows in (probs, features, gradients and gradients.hidden) if rows is not None), None)
        if rows is None:
            raise ValueError("nothing says which images the pool holds: pass ids, or probs, features or gradients")
        ids = range(len(rows) if rows.ndim else 0)
    # An id of a NumPy array or a tensor is a number: the same draws as its text.
    names = [str(name) for name in (ids.tolist() if hasattr(ids, "tolist") else ids)]
    return Evidence(names, probs, features, labelled_features, gradients)


def given(value: Value | None, need: Need, strategy: str) -> Value:
    """The value, or an error that says how to get it.

    Raises:
        ValueError: it is None.
    """
    if value is None:
        raise ValueError(f"{strategy} needs {need}, got none: {_WAY_OUT[need]}")
    return value


def _require_rows(name: str, rows: Tensor, ids: Sequence[str]) -> None:
    if rows.ndim != 2 or rows.shape[1] < 1:
        raise ValueError(f"{name} must be [images, dims] with 1 dim or more, got {list(rows.shape)}")
    if len(rows) != len(ids):
        raise ValueError(f"{len(ids)} ids but {name} of {len(rows)} images")
    # A sum over finite values may overflow, but one over NaN or infinity is never finite: few rows are looked into.
    for suspect in (~rows.sum(dim=1).isfinite()).nonzero()[:, 0].tolist():
        if not rows[suspect].isfinite().all():
            value = rows[suspect][~rows[suspect].isfinite()][0].item()
            raise ValueError(
                f"image {ids[suspect]!r} has {value} among its {name}: wanted finite numbers; "
                "look for a diverged training or a damaged image"
            )
