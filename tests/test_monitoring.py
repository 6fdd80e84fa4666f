"""What Prometheus and Grafana are given: as far as it can be checked without them, against what the server exports."""

import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from prometheus_client import generate_latest

from ml_backend.analytics.overview import Analysis
from ml_backend.analytics.readers import Estimate, ReaderAgreement
from ml_backend.server.metrics import Metrics
from ml_backend.storage import RoundStore
from tests.test_docker import BIN, DOCKER, DOCKER_COMPOSE, ROOT, SECRETS, check, compose_config
from tests.unit.server.memory import PROJECT, MemoryQueue
from tests.unit.server.test_metrics import RUNNING, learned

DASHBOARD: dict[str, Any] = json.loads((DOCKER / "grafana" / "active-learning.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
SHOWN = [panel for panel in PANELS if panel["type"] != "row"]
FILES = ("compose.yaml", "compose.monitoring.yaml")
GIVEN = SECRETS | {"GRAFANA_PASSWORD": "for-this-test-as-well"}

WITHOUT_A_PANEL = {
    "al_webhooks_created": "when the server began to count; Prometheus finds a restart in the counter itself",
}


def expressions() -> Iterator[str]:
    for panel in SHOWN:
        for target in panel["targets"]:
            yield target["expr"]


def used() -> set[str]:
    return {name for text in expressions() for name in re.findall(r"\bal_\w+", text)}


@pytest.fixture
def exported(tmp_path: Path) -> dict[str, str]:
    """Name -> type of every metric, of a server without any project."""
    metrics = Metrics(RoundStore(tmp_path), MemoryQueue())
    metrics.count_webhook("START_TRAINING")
    return dict(re.findall(r"^# TYPE (\S+) (\S+)$", generate_latest(metrics.registry).decode(), re.MULTILINE))


@pytest.fixture
def labels(tmp_path: Path) -> dict[str, set[str]]:
    """Name -> the labels that it carries, of a server whose one project has all that can be told."""
    store, queue = RoundStore(tmp_path), MemoryQueue()
    learned(store)
    readers = ReaderAgreement(ordered=True, kappa=Estimate(value=0.6, low=0.4, high=0.8, n=50), images=50)
    store.project(PROJECT).readings.keep_analysis(Analysis(inputs="", readers=readers))
    queue.state = RUNNING
    metrics = Metrics(store, queue)
    metrics.count_webhook("START_TRAINING")
    found: dict[str, set[str]] = {}
    for name, data in re.findall(r"^(al_\w+)(?:{(.*)})? ", generate_latest(metrics.registry).decode(), re.MULTILINE):
        found.setdefault(name, set()).update(re.findall(r'(\w+)="', data))
    return found


class TestMetrics:
    def test_names_go_by_prometheus_conventions(self, exported):
        """https://prometheus.io/docs/practices/naming: one prefix, base units, ``_total`` for counters alone."""
        for name, kind in exported.items():
            assert re.fullmatch(r"al(_[a-z]+)+", name)
            assert name.endswith("_total") == (kind == "counter"), name
            assert not re.search(r"_(ms|minutes|hours|percent|count|mb|kb)$", name), name
            assert ("timestamp" in name) <= name.endswith("_timestamp_seconds"), name

    def test_every_one_is_explained(self, tmp_path):
        metrics = Metrics(RoundStore(tmp_path), MemoryQueue())

        data = dict(re.findall(r"^# HELP (\S+) (.+)$", generate_latest(metrics.registry).decode(), re.MULTILINE))

        assert all(len(text) > 10 for text in data.values())
        assert len(set(data.values())) == len(data)


class TestDashboard:
    def test_shows_what_the_server_exports(self, exported):
        assert used() <= set(exported)

    def test_shows_all_of_it(self, exported):
        assert set(exported) - used() == set(WITHOUT_A_PANEL)

    def test_counters_are_shown_as_rates(self, exported):
        """Their value means nothing: it begins anew with every restart."""
        for text in expressions():
            for name in re.findall(r"\bal_\w+", text):
                counted = re.search(rf"(rate|increase)\({name}", text)
                assert (exported[name] == "counter") == (counted is not None), text

    def test_the_labels_in_its_legends_exist(self, labels):
        """``{{stage}}`` of a metric without stages would stay empty."""
        for panel in SHOWN:
            for target in panel["targets"]:
                [first, *_] = re.findall(r"\bal_\w+", target["expr"])
                wanted = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
                assert wanted <= labels[first], (panel["title"], target)

    def test_has_what_grafana_demands(self):
        assert DASHBOARD["id"] is None  # Grafana gives one; a number here would be another installation's
        assert re.fullmatch(r"[a-z0-9-]{1,40}", DASHBOARD["uid"])
        assert {"title", "schemaVersion", "version", "time", "refresh", "templating", "annotations", "tags"} <= set(
            DASHBOARD
        )
        assert [variable["name"] for variable in DASHBOARD["templating"]["list"]] == ["datasource", "project"]
        for panel in SHOWN:
            assert panel["title"]
            assert panel["description"]
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert panel["fieldConfig"]["defaults"]["unit"]
            refs = [target["refId"] for target in panel["targets"]]
            assert len(refs) == len(set(refs)) >= 1

    def test_panels_have_ids_and_titles_of_their_own(self):
        assert len({panel["id"] for panel in PANELS}) == len(PANELS)
        assert len({panel["title"] for panel in PANELS}) == len(PANELS)

    def test_panels_do_not_overlap_and_stay_on_the_page(self):
        places = [panel["gridPos"] for panel in PANELS]
        for place in places:
            assert 0 <= place["x"] < place["x"] + place["w"] <= 24
            assert place["y"] >= 0
            assert place["h"] > 0
        for a, b in combinations(places, 2):
            apart = (
                a["x"] + a["w"] <= b["x"]
                or b["x"] + b["w"] <= a["x"]
                or a["y"] + a["h"] <= b["y"]
                or b["y"] + b["h"] <= a["y"]
            )
            assert apart, (a, b)

    def test_every_panel_of_a_project_heeds_the_choice_of_projects(self):
        labelled = {name for text in expressions() for name in re.findall(r"(al_\w+){project=~\"\$project\"}", text)}

        assert used() - labelled == {
            "al_build_info",
            "al_projects",
            "al_queue_rounds",
            "al_unreadable_projects",
            "al_webhooks_total",
            "al_workers",
        }


class TestProvisioning:
    def test_grafana_finds_the_prometheus_of_the_overlay(self):
        [source] = yaml.safe_load((DOCKER / "grafana" / "datasources.yaml").read_text())["datasources"]

        assert source["type"] == DASHBOARD["templating"]["list"][0]["query"] == "prometheus"
        assert source["url"] == "http://prometheus:9090"
        assert "prometheus" in compose_config(*FILES, environ=GIVEN)["services"]

    def test_grafana_finds_the_dashboard(self):
        [provider] = yaml.safe_load((DOCKER / "grafana" / "dashboards.yaml").read_text())["providers"]
        grafana = compose_config(*FILES, environ=GIVEN)["services"]["grafana"]

        targets = {config["source"]: config["target"] for config in grafana["configs"]}
        assert Path(targets["grafana-active-learning"]).parent == Path(provider["options"]["path"])
        home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
        assert home == targets["grafana-active-learning"]

    def test_prometheus_scrapes_the_backend_with_its_password(self, tmp_path):
        """The command of the overlay writes the very files that prometheus.yml reads."""
        [job] = yaml.safe_load((DOCKER / "prometheus.yml").read_text())["scrape_configs"]
        service = compose_config(*FILES, environ=GIVEN)["services"]["prometheus"]
        script = service["command"][0].replace("$$", "$")
        [prepare, serve] = script.split("exec ")

        done = check(
            *("/bin/sh", "-ec", prepare.replace("/tmp/", f"{tmp_path}/")),
            environ={"BACKEND_USER": "ls", "BACKEND_PASSWORD": "it's %s \\n"},
        )

        assert done.returncode == 0, done.stderr
        names = {key: tmp_path / Path(job["basic_auth"][f"{key}_file"]).name for key in ("username", "password")}
        assert {key: path.read_text() for key, path in names.items()} == {"username": "ls", "password": "it's %s \\n"}
        assert all(path.stat().st_mode & 0o077 == 0 for path in names.values())
        assert job["static_configs"] == [{"targets": ["backend:9090"]}]
        assert job["metrics_path"] == "/metrics"
        assert service["configs"][0]["target"] in serve

    def test_no_secret_stands_in_a_file(self):
        for name in ("prometheus.yml", "compose.monitoring.yaml", "grafana/datasources.yaml"):
            text = (DOCKER / name).read_text()
            assert not re.search(r"(?i)password:[ \t]+[^$\s]", text), name


class TestCompose:
    def test_schema(self):
        done = check(
            BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", DOCKER / "compose.monitoring.yaml"
        )

        assert done.returncode == 0, done.stdout

    def test_changes_nothing_of_what_it_watches(self):
        plain, watched = compose_config("compose.yaml"), compose_config(*FILES, environ=GIVEN)

        assert set(watched["services"]) - set(plain["services"]) == {"prometheus", "grafana"}
        assert {name: watched["services"][name] for name in plain["services"]} == plain["services"]

    @pytest.mark.parametrize("name", ["prometheus", "grafana"])
    def test_runs_as_nobody_with_a_read_only_root(self, name):
        service = compose_config(*FILES, environ=GIVEN)["services"][name]

        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"])
        assert [mount.partition(":")[0] for mount in service["tmpfs"]] == ["/tmp"]
        assert all(mount["type"] == "volume" for mount in service["volumes"])
        assert not {"privileged", "cap_add", "pid", "ipc", "network_mode", "userns_mode"} & {
            key for key, value in service.items() if value
        }

    @pytest.mark.parametrize("name", ["prometheus", "grafana"])
    def test_is_pinned_and_reachable_from_this_host_only(self, name):
        service = compose_config(*FILES, environ=GIVEN)["services"][name]

        assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+\.\d+", service["image"])
        assert [port["host_ip"] for port in service["ports"]] == ["127.0.0.1"]

    def test_ports_differ(self):
        services = compose_config(*FILES, environ=GIVEN)["services"]

        published = [port["published"] for service in services.values() for port in service.get("ports", [])]
        assert len(published) == len(set(published)) == 4

    def test_grafana_reaches_neither_the_queue_nor_label_studio(self):
        services = compose_config(*FILES, environ=GIVEN)["services"]

        assert set(services["grafana"]["networks"]) == {"monitoring"}
        assert set(services["prometheus"]["networks"]) == {"web", "monitoring"}

    def test_files_that_it_mounts_exist(self):
        configs = compose_config(*FILES, environ=GIVEN)["configs"]

        assert configs
        assert all(Path(config["file"]).is_file() for config in configs.values())
        assert all(Path(config["file"]).is_relative_to(ROOT) for config in configs.values())

    def test_without_a_password_of_grafana_it_refuses(self):
        names = [part for name in FILES for part in ("-f", str(DOCKER / name))]

        done = check(DOCKER_COMPOSE, *names, "--env-file", DOCKER / "example.env", "config", "-q", environ=SECRETS)

        assert done.returncode != 0
        assert "required variable GRAFANA_PASSWORD is missing a value: set it in docker/.env" in done.stderr
