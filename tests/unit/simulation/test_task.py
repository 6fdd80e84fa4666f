"""Which labels make which class, and in which order."""

import pytest

from ml_backend.errors import SettingsError
from ml_backend.simulation.dataset import TaskMapping, parse_task


class TestParseTask:
    def test_order_is_severity(self):
        assert parse_task(" normal = normal ; diseased=bacterial, viral; ") == TaskMapping(
            ("normal", "diseased"), {"normal": "normal", "bacterial": "diseased", "viral": "diseased"}
        )

    def test_bare_names_only_state_the_order(self):
        assert parse_task("normal;moderate;severe").of == {name: name for name in ("normal", "moderate", "severe")}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "0 classes, 2 are the least"),
            ("normal=normal", "1 classes, 2 are the least"),
            ("normal=a;=b", "'=b' has an empty name"),
            ("normal=a;diseased=b,,c", "'diseased=b,,c' has an empty name"),
            ("normal=;diseased=b", "'normal=' has an empty name"),
            ("normal=a;normal=b", "class 'normal' is there twice"),
            ("normal=a;diseased=b,a", "label 'a' is there twice"),
            ("normal=a,a;diseased=b", "label 'a' is there twice"),
        ],
    )
    def test_says_what_is_wrong_and_how_to_write_it(self, text, message):
        with pytest.raises(SettingsError, match=rf"{message}; write it as 'normal=normal;diseased=bacterial,viral'"):
            parse_task(text)
