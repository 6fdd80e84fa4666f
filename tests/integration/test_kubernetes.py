"""The Kubernetes manifests, against the published schemas of Kubernetes and KEDA; no cluster is asked."""

import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml  # type: ignore[import-untyped]
from cloudcoil.models.keda.v1alpha1 import ScaledObject

from ml_backend.config import Settings
from tests.integration.processes import PROJECT, wait_until
from tests.test_docker import DOCKER, DOCKERFILE, compose_config

KUBERNETES = DOCKER / "kubernetes"
BASE, KEDA = KUBERNETES / "base", KUBERNETES / "keda"
VERSIONS = ["1.30", "1.37"]  # the oldest that clusters still have, and the newest with a schema

# Of KEDA's scaler "redis" (pkg/scalers/redis_scaler.go): it counts by the type of the key.
COUNTED_BY = {"list": "llen", "zset": "zcard", "none": "llen"}


def documents(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """File and object of everything that a kustomization names."""
    for name in read(folder / "kustomization.yaml")[0]["resources"]:
        path = folder / name
        if path.is_dir():
            yield from documents(path)
        else:
            yield from ((name, found) for found in read(path))


def read(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


ALL = list(documents(KEDA))
MANIFESTS = [one for _, one in ALL if one["kind"] != "ScaledObject"]


def named(kind: str, name: str) -> dict[str, Any]:
    [found] = [one for one in MANIFESTS if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return found


def pod(name: str) -> dict[str, Any]:
    kind = "StatefulSet" if name == "valkey" else "Deployment"
    return dict(named(kind, name)["spec"]["template"]["spec"])


class TestSchemas:
    @pytest.mark.parametrize("release", VERSIONS)
    def test_kubernetes(self, release):
        for manifest in MANIFESTS:
            kubernetes_validate.validate(manifest, release, strict=True)

    def test_a_misspelt_key_would_be_noticed(self):
        bad = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {"port": []}}

        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(bad, VERSIONS[-1], strict=True)

    def test_keda(self):
        """The model ignores what it does not know; what comes back is what it knows."""
        [given] = [one for _, one in ALL if one["kind"] == "ScaledObject"]

        known = ScaledObject.model_validate(given).model_dump(mode="json", by_alias=True, exclude_unset=True)

        assert known == given

    @pytest.mark.parametrize("folder", [BASE, KEDA])
    def test_kustomize(self, folder):
        """Every file is named, and nothing but files beside it and folders that are not above it."""
        [kustomization] = read(folder / "kustomization.yaml")

        assert kustomization["apiVersion"] == "kustomize.config.k8s.io/v1beta1"
        assert set(kustomization) <= {"apiVersion", "kind", "namespace", "labels", "resources", "images"}
        names = kustomization["resources"]
        assert {path.name for path in folder.iterdir()} - {"kustomization.yaml"} == {
            one for one in names if "/" not in one
        }
        assert not any(folder.resolve().is_relative_to((folder / one).resolve()) for one in names)
        assert kustomization["namespace"] == named("Namespace", "active-learning")["metadata"]["name"]


class TestManifests:
    def test_images_are_our_targets_in_this_version(self):
        images = {one["name"]: one for one in read(BASE / "kustomization.yaml")[0]["images"]}

        assert {one["newTag"] for one in images.values()} == {version("label-studio-active-learning")}
        for name, target in (("server", "server"), ("worker", "worker")):
            image = pod(name)["containers"][0]["image"]
            assert image == f"label-studio-active-learning-{target}"
            assert image in images
            assert re.search(rf"^FROM \S+ AS {target}$", DOCKERFILE, re.MULTILINE)
        assert pod("valkey")["containers"][0]["image"] == compose_config("compose.yaml")["services"]["valkey"]["image"]

    def test_settings_are_ones_that_we_read_and_the_same_as_in_compose(self):
        given = set(named("ConfigMap", "settings")["data"])
        compose = compose_config("compose.yaml")["services"]["backend"]["environment"]

        assert given <= {f"AL_{name.upper()}" for name in Settings.model_fields}
        secret = {"AL_LABEL_STUDIO_API_KEY", "AL_BASIC_AUTH_USER", "AL_BASIC_AUTH_PASS"}
        assert given | secret == set(compose)
        for name in ("server", "worker"):
            assert pod(name)["containers"][0]["envFrom"] == [
                {"configMapRef": {"name": "settings"}}, {"secretRef": {"name": "active-learning"}}
            ]  # fmt: skip

    @pytest.mark.parametrize("name", ["server", "worker", "valkey"])
    def test_keeps_to_the_restricted_standard_of_its_namespace(self, name):
        """And has a read-only root besides."""
        spec = pod(name)
        [container] = spec["containers"]

        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"memory"} <= set(container["resources"]["limits"])
        assert {"readinessProbe", "startupProbe"} & set(container)
        assert "livenessProbe" in container

    def test_users_are_those_of_the_images(self):
        services = compose_config("compose.yaml")["services"]

        for name, service in (("server", "backend"), ("worker", "worker"), ("valkey", "valkey")):
            security = pod(name)["securityContext"]
            assert f"{security['runAsUser']}:{security['runAsGroup']}" == services[service]["user"]

    def test_the_worker_has_a_gpu_and_time_to_end_its_round(self):
        spec = pod("worker")
        [container] = spec["containers"]

        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert {"name": "AL_DEVICE", "value": "cuda"} in container["env"]
        grace = compose_config("compose.yaml")["services"]["worker"]["stop_grace_period"]
        assert (spec["terminationGracePeriodSeconds"], grace) == (60, "1m0s")

    def test_server_and_workers_share_one_claim(self):
        claims = [
            volume["persistentVolumeClaim"]["claimName"]
            for name in ("server", "worker")
            for volume in pod(name)["volumes"]
            if "persistentVolumeClaim" in volume
        ]

        assert claims == ["rounds", "rounds"]
        assert named("PersistentVolumeClaim", "rounds")["spec"]["accessModes"] == ["ReadWriteMany"]

    def test_policies_and_services_select_pods_that_exist(self):
        """A selector without a pod would open nothing, or leave everything open."""
        labels = {
            one["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/name"]
            for one in MANIFESTS
            if one["kind"] in ("Deployment", "StatefulSet")
        }
        selected = set(re.findall(r"app\.kubernetes\.io/name': '(\w+)'", str(MANIFESTS)))

        assert labels == selected == {"server", "worker", "valkey"}
        nothing = named("NetworkPolicy", "nothing")["spec"]
        assert nothing == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


class TestScaling:
    def test_keda_counts_the_rounds_that_wait_and_run(self, redis, queue, plan, start_worker):
        """On a real queue, by the commands that KEDA uses for the type of the key."""
        [scaled] = [one["spec"] for _, one in ALL if one["kind"] == "ScaledObject"]
        keys = {trigger["name"]: trigger["metadata"]["listName"] for trigger in scaled["triggers"]}
        assert scaled["advanced"]["scalingModifiers"]["formula"] == "waiting + running"
        assert scaled["scaleTargetRef"]["name"] == named("Deployment", "worker")["metadata"]["name"]

        def counted() -> dict[str, int]:
            kinds = {name: redis.type(key).decode() for name, key in keys.items()}
            return {name: int(redis.execute_command(COUNTED_BY[kinds[name]], key)) for name, key in keys.items()}

        assert counted() == {"waiting": 0, "running": 0}
        plan("burn 600")
        queue.request_round(PROJECT, "labels")
        assert counted() == {"waiting": 1, "running": 0}

        start_worker()

        wait_until(lambda: queue.status(PROJECT).running)
        assert counted() == {"waiting": 0, "running": 1}
