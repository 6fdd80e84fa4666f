"""Label Studio's own SDK judges what we read from a label config and what we publish under it."""

from pathlib import Path

import pytest
from label_studio_sdk.label_interface.interface import LabelInterface

from ml_backend.label_studio.formats import parse_label_config, prediction

CONFIGS = sorted(Path(__file__).parents[3].joinpath("label_studio_config").glob("*.xml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
class TestShippedConfig:
    def test_is_read_as_the_sdk_reads_it(self, path):
        config = parse_label_config(path.read_text())
        control = LabelInterface(path.read_text()).get_control(config.from_name)

        assert config.classes == tuple(control.labels)
        assert [config.to_name] == list(control.to_name)
        assert config.attributes == control.attr

    def test_every_class_makes_a_prediction_that_the_sdk_accepts(self, path):
        config = parse_label_config(path.read_text())
        interface = LabelInterface(path.read_text())

        for suggestion in (None, *config.classes):
            found = prediction("7", 0.25, "al-r000001", config, suggestion)
            assert interface.validate_prediction(found, return_errors=True) == []

    def test_the_sdk_refuses_what_is_no_class(self, path):
        """The referee can show the red card: an unknown class is an error."""
        config = parse_label_config(path.read_text())
        wrong = prediction("7", 0.25, "al-r000001", config, "zebra")

        assert LabelInterface(path.read_text()).validate_prediction(wrong, return_errors=True)
