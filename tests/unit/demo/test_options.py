"""The visitor's choices, and the options that the demo makes of them."""

from pathlib import Path
from typing import ClassVar

import pytest

from ml_backend.config import ProjectOptions
from ml_backend.demo.images import DRAWN_CLASSES, Film
from ml_backend.demo.options import DemoOptions, LabelStudioAddress, check_enough, project_options
from ml_backend.errors import SettingsError


def films(normal: int, moderate: int, severe: int) -> list[Film]:
    counts = zip(DRAWN_CLASSES, (normal, moderate, severe), strict=True)
    return [Film(f"{name}-{i}.png", b"", name, None) for name, count in counts for i in range(count)]


class TestDemoOptions:
    @pytest.mark.parametrize("given", [{"images": Path("x")}, {"labels": Path("y.csv")}])
    def test_images_and_labels_go_together(self, given):
        with pytest.raises(SettingsError, match="go together"):
            DemoOptions(**given)

    @pytest.mark.parametrize("given", [{"rounds": 0}, {"readers": 0}, {"count": 0}, {"side": 8}])
    def test_refuses_what_is_too_small(self, given):
        name, value = next(iter(given.items()))
        with pytest.raises(SettingsError, match=f"{name}={value}"):
            DemoOptions(**given)

    def test_takes_a_running_redis_from_the_environment(self, monkeypatch):
        monkeypatch.setenv("AL_REDIS_URL", "redis://there:6379/1")

        assert DemoOptions().redis_url == "redis://there:6379/1"


class TestLabelStudioAddress:
    FULL: ClassVar = {
        "AL_DEMO_LABEL_STUDIO_URL": "http://there:8080/",
        "AL_DEMO_LABEL_STUDIO_EMAIL": "a@example.com",
        "AL_DEMO_LABEL_STUDIO_PASSWORD": "secret",
        "AL_DEMO_LABEL_STUDIO_TOKEN": "0f",
    }

    def test_is_read_whole(self):
        address = LabelStudioAddress.from_environ(self.FULL)

        assert address is not None
        assert (address.url, address.admin.email, address.admin.token) == ("http://there:8080", "a@example.com", "0f")

    def test_is_none_by_default(self):
        assert LabelStudioAddress.from_environ({}) is None

    def test_half_of_it_is_refused(self):
        half = {name: value for name, value in self.FULL.items() if not name.endswith(("TOKEN", "EMAIL"))}

        with pytest.raises(SettingsError, match="EMAIL and AL_DEMO_LABEL_STUDIO_TOKEN"):
            LabelStudioAddress.from_environ(half)


class TestProjectOptions:
    @pytest.mark.parametrize(("at_hand", "weights"), [(True, "imagenet"), (False, "none")])
    def test_goes_on_without_weights(self, at_hand, weights):
        assert project_options(DemoOptions(), at_hand, {})["weights"] == weights

    def test_the_environment_takes_the_place_of_a_default_in_its_type(self):
        chosen = project_options(DemoOptions(), True, {"AL_PASSES": "7", "AL_WEIGHTS": "/w.pt", "AL_RESERVE": "all"})

        assert (chosen["passes"], chosen["weights"], chosen["reserve"]) == (7, "/w.pt", "all")

    def test_the_visitors_strategy_and_seed_are_passed_on(self):
        chosen = project_options(DemoOptions(strategy="batch_bald", seed=9), True, {})

        assert (chosen["strategy"], chosen["seed"]) == ("batch_bald", 9)

    def test_a_wrong_one_is_named(self):
        with pytest.raises(SettingsError, match="strategy='best'"):
            project_options(DemoOptions(strategy="best"), True, {})


class TestCheckEnough:
    OPTIONS: ClassVar = ProjectOptions(min_labels_per_class=4, retrain_after=20)

    def test_hand_computed(self):
        """Three rounds of 20, half a batch more, and one image on each of two screens: 72."""
        check_enough(films(30, 35, 7), DRAWN_CLASSES, DemoOptions(), self.OPTIONS)

        with pytest.raises(SettingsError, match="3 rounds need 72 images or more, there are 71"):
            check_enough(films(30, 34, 7), DRAWN_CLASSES, DemoOptions(), self.OPTIONS)

    def test_says_how_to_give_more(self):
        """Images that the demo draws cannot be given."""
        own = DemoOptions(images=Path("films"), labels=Path("labels.csv"))

        with pytest.raises(SettingsError, match="give a larger --count, fewer ROUNDS"):
            check_enough(films(30, 34, 7), DRAWN_CLASSES, DemoOptions(), self.OPTIONS)
        with pytest.raises(SettingsError, match="give more images, fewer ROUNDS"):
            check_enough(films(30, 34, 7), DRAWN_CLASSES, own, self.OPTIONS)

    def test_names_the_class_that_is_too_small(self):
        with pytest.raises(SettingsError, match="every class has 4 labels, but severe has 3 of 103 images"):
            check_enough(films(50, 50, 3), DRAWN_CLASSES, DemoOptions(), self.OPTIONS)
