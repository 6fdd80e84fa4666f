"""An acquisition function outside ml_backend."""

from jaxtyping import Float
from torch import Tensor

from ml_backend.acquisition import acquisition_function


@acquisition_function(
    "least_seen",
    summary="images whose most probable class the network gives least mass over the whole pool",
    unit="probability",
    range="0 .. 1 - 1/C",
    source="an example",
)
def least_seen(probs: Float[Tensor, "images passes classes"]) -> Float[Tensor, " images"]:
    """One minus the mean probability, over the pool, of each image's most probable class.

    Args:
        probs: softmax outputs of the stochastic passes; each row sums to 1.

    Returns:
        Scores in probability units.
    """
    mean = probs.double().mean(dim=1)
    return 1.0 - mean.mean(dim=0)[mean.argmax(dim=-1)]
