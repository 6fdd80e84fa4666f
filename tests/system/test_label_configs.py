"""The label configs that we ship, before Label Studio's own validation."""

from pathlib import Path

import pytest

from ml_backend.config import ProjectOptions
from ml_backend.errors import RequestRefused
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.formats import parse_label_config, training_classes
from tests.system.live import RunningLabelStudio

pytestmark = pytest.mark.system
CONFIGS = sorted((Path(__file__).parents[2] / "label_studio_config").glob("*.xml"))


def validate(label_studio: RunningLabelStudio, xml: str) -> None:
    with LabelStudioClient(label_studio.url, label_studio.api_key) as client:
        project = client.request("POST", "/api/projects/", dict, body={"title": "test label configs"})
        try:
            client.send("POST", f"/api/projects/{project['id']}/validate/", body={"label_config": xml})
        finally:
            client.send("DELETE", f"/api/projects/{project['id']}/")


def test_both_are_here() -> None:
    assert [path.name for path in CONFIGS] == ["normal_diseased.xml", "severity.xml"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_label_studio_accepts_what_we_read(label_studio: RunningLabelStudio, path: Path) -> None:
    xml = path.read_text()
    config = parse_label_config(xml)
    options = ProjectOptions.resolve(attributes=config.attributes, environ={})

    assert training_classes(config, options)[0] == "normal"
    assert "unreadable" in config.classes
    validate(label_studio, xml)


def test_label_studio_would_refuse_a_broken_one(label_studio: RunningLabelStudio) -> None:
    """Else the test above proves nothing."""
    xml = CONFIGS[0].read_text().replace('toName="image"', 'toName="picture"')

    with pytest.raises(RequestRefused, match="picture"):
        validate(label_studio, xml)
