"""What the visitor may choose about the demo, and what the demo chooses for its project."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ml_backend.config import ProjectOptions
from ml_backend.demo.images import Film
from ml_backend.demo.services import Login
from ml_backend.errors import SettingsError

# Small enough to be through in six minutes on two cores, large enough that the network learns something.
DEFAULTS: dict[str, object] = {
    "batch_size": 20,
    "reserve": 80,
    "retrain_after": 20,
    "min_labels_per_class": 4,
    "passes": 50,
    "finetune": "head",
    "backbone": "resnet50",
    "image_side": 224,
}


@dataclass(frozen=True, slots=True)
class LabelStudioAddress:
    """A Label Studio that runs already, and its owner."""

    url: str
    admin: Login

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "LabelStudioAddress | None":
        """The one named by ``AL_DEMO_LABEL_STUDIO_URL``; None where the demo is to start its own.

        Raises:
            SettingsError: the token or the owner's e-mail address is missing.
        """
        url = environ.get("AL_DEMO_LABEL_STUDIO_URL")
        if not url:
            return None
        names = ("AL_DEMO_LABEL_STUDIO_EMAIL", "AL_DEMO_LABEL_STUDIO_PASSWORD", "AL_DEMO_LABEL_STUDIO_TOKEN")
        if missing := [name for name in names if not environ.get(name)]:
            raise SettingsError(
                f"AL_DEMO_LABEL_STUDIO_URL={url!r} needs {' and '.join(missing)} too (a legacy token); "
                "or unset it, and the demo starts a Label Studio of its own"
            )
        email, password, token = (environ[name] for name in names)
        return cls(url.rstrip("/"), Login(email, password, token))


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """The demo's own choices.

    Options of the project stand in the environment (``AL_PASSES=20``), as they do for a backend.
    """

    rounds: int = 3  # published by a trained network
    readers: int = 2
    images: Path | None = None
    labels: Path | None = None
    count: int = 160  # images to draw
    side: int = 256  # of a drawn image, in pixels
    strategy: str = "mean_std"
    seed: int = 0
    mistakes: float = 0.05  # share of the images that a reader gets wrong
    folder: Path = Path(".demo")
    json: Path | None = None
    stay: bool | None = None  # None: on a terminal only
    redis_url: str | None = field(default_factory=lambda: os.environ.get("AL_REDIS_URL") or None)
    label_studio: LabelStudioAddress | None = field(default_factory=lambda: LabelStudioAddress.from_environ(os.environ))

    def __post_init__(self) -> None:
        if (self.images is None) != (self.labels is None):
            raise SettingsError(
                f"IMAGES={str(self.images or '')!r} and LABELS={str(self.labels or '')!r} go together: "
                "a folder of images, and a CSV file with the columns path,label"
            )
        if self.rounds < 1 or self.readers < 1 or self.count < 1 or self.side < 32:
            raise SettingsError(
                f"rounds={self.rounds}, readers={self.readers} and count={self.count} must be at least 1, "
                f"side={self.side} at least 32"
            )


def project_options(demo: DemoOptions, imagenet_at_hand: bool, environ: Mapping[str, str]) -> dict[str, object]:
    """The ``extra_params`` of the demo's connection.

    Args:
        demo: the visitor's choices.
        imagenet_at_hand: whether the weights that ``imagenet`` means are on this machine.
        environ: an ``AL_<NAME>`` here takes the place of the demo's own default.

    Raises:
        SettingsError: names what is wrong and what is allowed.
    """
    chosen = DEFAULTS | {"weights": "imagenet" if imagenet_at_hand else "none"}
    chosen = {name: environ.get(f"AL_{name.upper()}", value) for name, value in chosen.items()}
    chosen |= {"strategy": demo.strategy, "seed": demo.seed}
    # Only what was chosen goes out, but in its proper type.
    resolved = ProjectOptions.resolve(chosen, environ={}).model_dump()
    return {name: resolved[name] for name in chosen}


def check_enough(films: Sequence[Film], classes: Sequence[str], demo: DemoOptions, options: ProjectOptions) -> None:
    """Make sure before anything is started that the images suffice for the rounds.

    Raises:
        SettingsError: says how many there are, how many are needed, and what to change.
    """
    more = "a larger --count" if demo.images is None else "more images"
    counts = Counter(film.label for film in films)
    least = options.min_labels_per_class
    if short := [f"{name} has {counts[name]}" for name in classes if counts[name] < least]:
        raise SettingsError(
            f"a network is trained once every class has {least} labels, but {' and '.join(short)} of {len(films)} "
            f"images: give {more}, or set AL_MIN_LABELS_PER_CLASS"
        )
    # At best the start set is the first batch; readers go on while a round runs, half a batch at most.
    needed = options.retrain_after * demo.rounds + options.retrain_after // 2 + demo.readers
    if len(films) < needed:
        raise SettingsError(
            f"{demo.rounds} rounds need {needed} images or more, there are {len(films)}: "
            f"give {more}, fewer ROUNDS, or set AL_RETRAIN_AFTER"
        )
