"""The doctor on an installation in memory: all well, and what the system tests cannot break."""

import shutil
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ml_backend.config import ProjectOptions
from ml_backend.doctor import checks
from ml_backend.doctor.checks import (
    CHECKS,
    connect_notes,
    ground_truth_note,
)
from ml_backend.doctor.runner import examine
from ml_backend.scheduling import LastError, QueueStatus
from ml_backend.storage import RoundStore
from tests.fakes import make_fit, make_report
from tests.label_configs import LEARNED, REFUSED
from tests.unit.doctor.installation import BACKEND, KEY, Installation, failures
from tests.unit.label_studio.studio import LABEL_CONFIG
from tests.unit.label_studio.test_sync import answer

REQUEST = make_report().request.model_copy(update={"classes": ("normal", "severe")})
TRAINED = make_report().model_copy(update={"fit": make_fit(), "request": REQUEST})


class TestChecks:
    def test_need_only_what_comes_before(self):
        seen: set[str] = set()
        for check in CHECKS:
            assert set(check.needs) <= seen, check.name
            assert check.name not in seen
            seen.add(check.name)

    def test_pass_where_all_is_well(self, installation):
        found = installation.examine()

        assert {name: one.seen for name, one in found.items() if one.verdict != "ok"} == {}
        assert found["readers per image"].seen == "1"
        assert found["predictions on"].seen == "on"

    @pytest.mark.parametrize("name", ["nested", "Rating", "several images a task"])
    def test_refuse_a_label_config_that_could_never_be_learned(self, installation, name):
        installation.project["label_config"] = REFUSED[name].xml

        found = installation.examine()

        assert found["label config"].verdict == "FAIL"
        assert REFUSED[name].reason in found["label config"].seen
        assert REFUSED[name].way_out in found["label config"].seen
        assert found["classes"].verdict == "skip"

    def test_name_the_question_and_the_classes_as_readers_see_them(self, installation):
        xml = LEARNED["alias"].xml.replace("</View>", '<TextArea name="why" toName="image"/></View>')
        installation.project["label_config"] = xml

        found = installation.examine()

        assert found["label config"].seen == (
            "Choices 'label' about Image 'image', in $image of a task; nor TextArea 'why', which cannot be learned"
        )
        assert found["classes"].seen == "least to most severe: 0 (normal) < 2 (severe); no class: 9 (Unreadable)"

    def test_change_nothing(self, installation):
        """All that is sent besides questions: an unchanged title, and two requests that can make nothing."""
        before = dict(installation.project)

        installation.examine()

        changing = [asked for asked in installation.asked if asked[0] != "GET"]
        assert changing == [("POST", "/api/ml"), ("POST", "/api/webhooks/"), ("PATCH", "/api/projects/7/")]
        assert installation.project == before

    def test_say_how_each_failure_is_mended(self, installation):
        """Everything broken at once: no failure without its remedy."""
        installation.settings["redis_url"] = "redis://:secret-word@127.0.0.1:1/0"
        installation.project |= {"sampling": "Sequential sampling", "maximum_annotations": 2, "model_version": "x"}
        installation.webhooks.clear()
        installation.answers = False
        installation.queue.alive = 0
        installation.images.clear()

        found = installation.examine()

        assert {"backend", "webhook", "sampling", "readers per image", "order served", "images"} < failures(found)
        assert [one.name for one in found.values() if (one.verdict == "FAIL") != bool(one.remedy)] == []


def serve(installation: Installation, **row: object) -> None:
    """Change the row of the project, before any ranking is published."""
    (installation.kept.project(KEY).folder / "published.json").unlink()
    installation.project |= row


def options(installation: Installation, **chosen: object) -> None:
    installation.backends[0]["extra_params"] |= chosen


def last_round(installation: Installation, error: LastError | None = None, **status: Any) -> None:
    assert installation.queue is not None
    installation.queue.state = QueueStatus(last_error=error, **status)


def before_the_first_import(installation: Installation) -> None:
    installation.empty()
    last_round(installation, LastError(kind="EmptyPool", message="none", at=0))


def keep_images(installation: Installation, number: int) -> None:
    del installation.uris[number:]
    installation.held["al-r000001-x"] = number


WEIGHTS_GONE = LastError(kind="WeightsError", message="the weights are gone", at=1_700_000_000.0)
BROKEN: dict[str, tuple[Callable[[Installation], object], set[str], str, str]] = {
    "a round whose worker died": (
        lambda it: vars(it.queue).update(alive=0, state=QueueStatus(running="labels")),
        {"worker", "rounds"}, "labels stopped: no worker answers", "ml-backend work",
    ),
    "another server at Label Studio's address": (
        lambda it: setattr(it, "release", {"version": "5.0"}),
        {"Label Studio"}, "is no Label Studio", "AL_LABEL_STUDIO_URL",
    ),
    "a password in an address": (
        lambda it: it.settings.update(label_studio_url="http://me:pw@ls:8080"), {"settings"}, "a password", "variables"
    ),
    "several wrong settings": (
        lambda it: it.settings.update(timeout_s="soon", device="tpu"), {"settings"}, "AL_DEVICE='tpu'", "variables"
    ),
    "no key": (
        lambda it: it.settings.pop("label_studio_api_key"), {"API key"}, "API_KEY is not set", "personal access token"
    ),
    "a user without rights": (
        lambda it: it.user["permissions"].remove("projects.change"), {"API key"}, "lacks projects.change", "of a user"
    ),
    "no such project": (lambda it: it.project.update(id=8), {"project"}, "no project 7", "is --project right?"),
    "backends at private addresses": (
        lambda it: it.blocks.add("/api/ml"), {"private addresses"}, "allows no backends at", "BLOCK_LOCAL_IP=false"
    ),
    "webhooks at private addresses": (
        lambda it: it.blocks.add("/api/webhooks/"), {"private addresses"}, "no webhooks at", "PROTECTION_ENABLED=false"
    ),
    "both at private addresses": (
        lambda it: it.blocks.update({"/api/ml", "/api/webhooks/"}),
        {"private addresses"}, f"no backends and no webhooks at {BACKEND}: ", "PROTECTION_ENABLED=false",
    ),
    "a refused backend": (
        lambda it: it.backends[0].update(state="ER", error_message="401 Client Error: user and password are wanted"),
        {"connection"}, "401 Client Error", "AL_BASIC_AUTH_USER",
    ),
    "another user": (
        lambda it: it.backends[0].update(basic_auth_user="somebody"), {"connection"}, "'somebody'", "ml-backend connect"
    ),
    "what an earlier connect left": (
        lambda it: it.backends.append(it.backends[0] | {"id": 2, "url": "http://backend:9090"}),
        {"one connection"}, "at http://backend:9090, which an earlier connect left", "ml-backend connect",
    ),
    "lost events": (lambda it: setattr(it, "delivers", False), {"event arrives"}, "no event arrived", BACKEND),
    "the title before the first ranking": (
        lambda it: serve(it, model_version="Active learning"), {"order served"}, "random order", "ml-backend connect"
    ),
    "the ranking of another installation": (
        lambda it: it.project.update(model_version="al-r000009-bald-0a1b2c"),
        {"order served"}, "another installation", "stop the other installation",
    ),
    "no predictions": (lambda it: it.held.clear(), {"predictions"}, "holds 0 predictions of al-r", "Top up"),
    "too many predictions": (lambda it: it.held.update({"al-r000001-x": 4}), {"predictions"}, "holds 4", "Top up"),
    "an image host that is not allowed": (
        lambda it: it.uris.__setitem__(1, "http://films.example/1.png"), {"images"}, "2 of 3", "AL_IMAGE_HOSTS"
    ),
    "a file that is no image": (
        lambda it: it.images.update({it.uris[0]: b"PK\x03\x04 an archive"}), {"images"}, "ZIP", "export the images"
    ),
    "a failed round": (
        lambda it: last_round(it, WEIGHTS_GONE, next_attempt=1_700_003_600.0),
        {"rounds"}, "WeightsError: the weights are gone", "tried again by itself at 23:13 UTC",
    ),
    "no data folder": (
        lambda it: it.settings.update(data_dir=it.settings["data_dir"] / "nowhere"),
        {"data folder", "rounds on disk"}, "nowhere does not exist or is not a directory", "set AL_DATA_DIR",
    ),
    "an unknown network": (lambda it: options(it, backbone="resnet51"), {"weights"}, "resnet51", "`backbone`"),
    "weights of another network": (lambda it: options(it, weights=__file__), {"weights"}, "cannot be read", "another"),
    "a GPU that is not there": (lambda it: it.settings.update(device="cuda"), {"GPU"}, "no usable GPU", "AL_DEVICE"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN.values(), ids=BROKEN.keys())
def test_what_is_broken_alone_is_named_with_its_remedy(installation, monkeypatch, case):
    breaks, failing, seen, remedy = case
    monkeypatch.setattr(checks, "ARRIVES_WITHIN_S", 0.3)
    monkeypatch.setattr(checks, "GPU_FILES", ())
    breaks(installation)

    found = installation.examine()

    assert failures(found) == failing
    one = next(finding for finding in found.values() if finding.verdict == "FAIL" and seen in finding.seen)
    assert remedy in one.remedy
    assert "pw" not in str(found).replace("password", "")


def test_images_of_a_package_are_read_by_its_source(installation, monkeypatch):
    class Vault:
        def fetch(self, image):
            return next(iter(installation.images.values()))

    monkeypatch.setattr("ml_backend.images.source.plugins", lambda group: {"vault": group})
    monkeypatch.setattr("ml_backend.images.source.build_plugin", lambda _group, _name: Vault())
    installation.uris[:] = [f"vault://{number}" for number in range(len(installation.uris))]

    assert failures(installation.examine()) == set()


SOUND: dict[str, tuple[Callable[[Installation], object], dict[str, str]]] = {
    "another release": (
        lambda it: setattr(it, "release", {"release": "1.30.0"}),
        {"Label Studio": "1.30.0 at http://ls:8080: NOT tested; tested are 1.19.0, "},
    ),
    "a release that is too old": (
        lambda it: setattr(it, "release", {"release": "1.18.0"}),
        {"Label Studio": "1.23.2: if something fails, upgrade it to 1.23.2"},
    ),
    "no images yet, also where the first round has found none": (
        before_the_first_import,
        {"project": "import images", "labelling": "no images yet"},
    ),
    "no ranking yet": (lambda it: serve(it, model_version=""), {"automatic rounds": "after 20 changed"}),
    "deleted tasks take their predictions along": (
        lambda it: keep_images(it, 2), {"predictions": "1 images were deleted since"}
    ),
    "rounds by hand": (lambda it: it.project.update(min_annotations_to_start_training=0), {"automatic rounds": "off"}),
    "one image": (
        lambda it: keep_images(it, 1), {"images": "1 decoded", "quarantine": "no round has read the images yet"}
    ),
    "a round that runs and one that waits": (
        lambda it: last_round(it, running="labels", waiting="images", changes=12, threshold=20),
        {"rounds": "runs: labels, waits: images; 12 of the 20 labels for the next are given; 0 done, 0 failed"},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "expected"), SOUND.values(), ids=SOUND.keys())
def test_what_is_no_failure(installation, changes, expected):
    changes(installation)

    found = installation.examine()

    assert failures(found) == set()
    for name, words in expected.items():
        assert words in found[name].seen


def test_a_host_without_a_dot_is_never_recommended(installation):
    """Label Studio holds the backend at it, and sends it no events."""
    installation.backends[0]["url"] = "http://backend:9090"
    installation.webhooks.clear()
    installation.project["sampling"] = "Sequential sampling"

    found = {one.name: one for one in examine(installation.context("http://backend:9090"))}

    assert failures(found) >= {"address", "sampling"}
    assert found["address"].seen.endswith("since its host 'backend' has no dot")
    assert found["connection"].verdict == found["webhook"].verdict == "skip"
    assert [one.remedy for one in found.values() if "--url http://backend:9090" in one.remedy] == []
    assert "--url http://backend.internal:9090" in found["sampling"].remedy


def test_an_option_of_the_environment_that_has_no_effect(installation, monkeypatch):
    monkeypatch.setenv("AL_STRATEGY", "bald")
    monkeypatch.setenv("AL_BACKBONE", "resnet50")
    monkeypatch.setenv("AL_PASSES", "7")
    config = installation.project["label_config"].replace("<Choices ", '<Choices model_strategy="mean_std" ')
    installation.project["label_config"] = config

    found = installation.examine()

    assert failures(found) == set()
    assert "AL_STRATEGY=bald has no effect here: the label config's Choices tag has strategy=mean_std" in (
        found["options"].seen
    )
    assert "AL_BACKBONE=resnet50 has no effect here: the project's connection has backbone=resnet18" in (
        found["options"].seen
    )
    assert "AL_PASSES" not in found["options"].seen


@pytest.mark.parametrize("name", ["published.json", "versions.json"])
def test_a_damaged_record_of_what_is_served(installation, tmp_path, name):
    """Without it nothing can be said about the predictions."""
    (RoundStore(tmp_path).project(KEY).folder / name).write_text('{"ver')

    found = installation.examine()

    assert "rounds on disk" in failures(found)
    assert name in found["rounds on disk"].seen
    assert found["predictions"].verdict == "skip"


class TestMachine:
    def test_a_folder_that_cannot_be_written(self, installation, monkeypatch):
        """Root may write anywhere, so the disk itself refuses."""

        def refuse(*_: object, **__: object) -> None:
            raise OSError(30, "Read-only file system")

        monkeypatch.setattr("ml_backend.storage.atomic.tempfile.TemporaryFile", refuse)

        found = installation.examine()

        assert failures(found) == {"data folder"}
        assert "(Read-only file system): mount it for writing" in found["data folder"].seen
        assert found["space"].verdict == "skip"

    def test_leaves_nothing_in_the_folder(self, installation, tmp_path):
        before = sorted(tmp_path.iterdir())

        installation.examine()

        assert sorted(tmp_path.iterdir()) == before

    @pytest.mark.parametrize(
        ("images", "free_gb", "expected"),
        [
            (3, 0.1, ("FAIL", "0.1 GB free; a round of 3 images keeps up to 0.1 GB")),
            (3, 500.0, ("ok", "500.0 GB free")),
            # Of 53 KB and of 8 KB of features an image: 20 GB, the limit, and 8.2 GB.
            (1_000_000, 10.0, ("ok", "caches want 28.2 GB")),
        ],
    )
    def test_space(self, installation, monkeypatch, images, free_gb, expected):
        installation.project["task_number"] = images
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=int(free_gb * 1e9)))

        found = installation.examine()["space"]

        assert found.verdict == expected[0]
        assert expected[1] in found.seen

    @pytest.fixture
    def empty_hub(self, tmp_path, monkeypatch):
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
        return tmp_path / "hub" / "checkpoints"

    def test_weights_that_are_missing(self, installation, empty_hub):
        options(installation, weights="imagenet")

        found = installation.examine()

        assert failures(found) == {"weights"}
        assert "the published weights of resnet18: not on this machine" in found["weights"].seen
        assert f"as {empty_hub}/resnet18-f37072fd.pth;" in found["weights"].remedy

    @pytest.mark.parametrize(
        ("backbone", "seen", "way_out"),
        [
            ("timm/convnext_tiny", "not on this machine", "hub/checkpoints/timm-convnext_tiny.safetensors;"),
            ("xrv-densenet121", "there are none", "set the option weights to a file of yours"),
        ],
    )
    @pytest.mark.usefixtures("empty_hub")
    def test_published_weights_that_are_missing(self, installation, backbone, seen, way_out):
        options(installation, weights="imagenet", backbone=backbone)

        found = installation.examine()["weights"]

        assert f"the published weights of {backbone}: {seen}" in found.seen
        assert way_out in found.remedy
        assert ("fetch" in found.remedy) == (seen == "not on this machine")

    def test_a_server_without_torch_skips_what_is_the_workers(self, installation, monkeypatch):
        """And says what is missing here; doctor ends with 0."""
        installation.settings["device"] = "auto"
        monkeypatch.setattr(checks, "GPU_FILES", ("/dev/null",))
        monkeypatch.setitem(sys.modules, "torch", None)

        found = installation.examine()

        assert failures(found) == set()
        for name in ("weights", "GPU"):
            assert found[name].verdict == "skip"
            assert "worker's machine needs torch, which is not installed" in found[name].seen

    @pytest.mark.parametrize(("backbone", "verdict"), [("resnet18", "ok"), ("resnet50", "skip")])
    def test_pytorch_is_not_loaded_for_weights_that_a_round_has_trained_with(
        self, installation, monkeypatch, backbone, verdict
    ):
        request = REQUEST.model_copy(update={"options": {"backbone": backbone, "weights": "none"}})
        installation.kept.project(KEY).save(TRAINED.model_copy(update={"request": request}), None, None)
        installation.settings["device"] = "auto"
        monkeypatch.setattr(checks, "GPU_FILES", ())
        monkeypatch.setitem(sys.modules, "torch", None)

        found = installation.examine()

        assert found["weights"].verdict == verdict
        assert (found["weights"].seen == "of resnet18, with which round 1 has trained") == (verdict == "ok")
        assert {name for name, one in found.items() if one.verdict != "ok"} <= {"weights"}

    def test_published_weights_that_a_round_has_trained_with_are_looked_for(self, tmp_path, monkeypatch):
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        options = ProjectOptions(backbone="resnet50", weights="imagenet")
        assert not checks._has_weights(options)

        (tmp_path / "hub/checkpoints").mkdir(parents=True)
        (tmp_path / "hub/checkpoints/resnet50-11ad3fa6.pth").touch()
        assert checks._has_weights(options)


class TestGpu:
    @pytest.fixture(autouse=True)
    def no_gpu(self, monkeypatch):
        monkeypatch.setattr(checks, "GPU_FILES", ("/dev/null",))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    @pytest.mark.parametrize(("finetune", "said"), [("auto", "heads are trained on the CPU"), ("full", "takes hours")])
    def test_none(self, installation, finetune, said):
        installation.settings["device"] = "auto"
        installation.backends[0]["extra_params"] |= {"finetune": finetune}

        seen = installation.examine()["GPU"]

        assert seen.verdict == "ok"
        assert said in seen.seen

    @pytest.mark.parametrize(
        ("chosen", "verdict", "said"),
        [
            ({"finetune": "full", "train_batch": 64}, "ok", "a GPU, 8.0 GB, 4.0 of them free now; a batch of train_b"),
            ({"finetune": "head"}, "ok", "only heads are trained"),
            ({"finetune": "full", "precision": "bfloat16"}, "FAIL", "bfloat16"),
        ],
    )
    def test_one_that_pytorch_finds(self, installation, monkeypatch, chosen, verdict, said):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (4 * 10**9, 8 * 10**9))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
        installation.settings["device"] = "auto"
        installation.backends[0]["extra_params"] |= chosen

        seen = installation.examine()["GPU"]

        assert seen.verdict == verdict
        assert said in seen.seen


class TestLabels:
    """What is said of the project's labels is what its page says, by the same functions."""

    def told(self, installation, *tasks):
        """Keeps these tasks as the backend's last reading; nothing has changed since."""
        installation.project |= {
            "task_number": len(tasks),
            "total_annotations_number": sum(not item["was_cancelled"] for task in tasks for item in task[1:]),
            "skipped_annotations_number": 0,
            "ground_truth_number": sum(item["ground_truth"] for task in tasks for item in task[1:]),
        }
        rows = [{"id": n, "data": {"image": uri}, "annotations": list(said)} for n, (uri, *said) in enumerate(tasks, 1)]
        installation._tasks = lambda: {"total": len(rows), "tasks": rows}
        return {name: installation.examine()[name] for name in ("same image twice", "ground truths")}

    def test_where_there_is_nothing_to_say(self, installation):
        found = self.told(installation, ("/data/a.png", answer("normal")), ("/data/b.png",))

        assert {one.verdict for one in found.values()} == {"ok"}
        assert found["same image twice"].seen == "every image is in one task"
        assert found["ground truths"].seen == "no annotation is marked as ground truth"

    def test_copies_and_ground_truths(self, installation):
        found = self.told(
            installation, ("/data/a.png", answer("normal", truth=True), answer("severe", 2)), ("/data/a.png",)
        )

        assert found["same image twice"].seen.startswith("1 image is in two or more tasks (2 in all)")
        assert found["ground truths"].seen == "1 label is a ground truth; it overrides 1 differing answer of readers."

    def test_a_large_project_that_was_never_read_is_left_to_the_backend(self, installation):
        installation.project["task_number"] = 1001

        found = installation.examine()

        assert (found["same image twice"].verdict, found["ground truths"].verdict) == ("skip", "skip")

    def test_what_connect_says(self, installation):
        self.told(installation, ("/data/a.png", answer("normal", truth=True), answer("severe", 2)))

        assert ground_truth_note(installation.context()).startswith(
            "1 label is a ground truth; it overrides 1 differing answer"
        )
        assert "the option ground_truth says what they count as" in ground_truth_note(installation.context())

    def test_connect_ends_with_the_pages(self, installation, tmp_path):
        """Both as a browser finds them: Label Studio by the name that it gave to /setup."""
        installation.settings["public_url"] = "https://al.example.org/"
        stored = RoundStore(tmp_path).project(KEY).folder / "connection.json"
        stored.write_text(stored.read_text().replace("http://ls:8080", "https://ls.example.org"))

        assert connect_notes(installation.context()) == [
            "the project in Label Studio: https://ls.example.org/projects/7/data",
            f"the owner's page: https://al.example.org/projects/{KEY}",
        ]

    def test_connect_ends_with_the_pages_for_a_user_who_may_not_read_the_data_folder(self, installation, tmp_path):
        installation.settings["label_studio_url"] = "http://ls:8080"
        (RoundStore(tmp_path).project(KEY).folder / "connection.json").write_text("no JSON")

        assert connect_notes(installation.context())[-1].endswith(f"/projects/{KEY}")

    @pytest.mark.parametrize("row", [{"ground_truth_number": 0}, {"ground_truth_number": 1, "label_config": "<View/>"}])
    def test_connect_says_nothing_where_there_is_nothing_and_never_fails(self, installation, row):
        installation.project |= row

        assert ground_truth_note(installation.context()) == ""


class TestLabelling:
    """What the page tells too, from the same function."""

    @pytest.mark.parametrize("error", [None, "EmptyPool"])
    def test_everything_is_labelled(self, installation, error):
        """A success: also where the last round found no image to rank, and after the order was used up."""
        installation.answer("normal", "severe", None)
        installation.project["skip_queue"] = "IGNORE_SKIPPED"
        installation.backends[0]["extra_params"] |= {"min_labels_per_class": 2}
        installation.kept.project(KEY).save(TRAINED, None, None)
        if error:
            installation.queue.state = QueueStatus(last_error=LastError(kind=error, message="all labelled", at=0))

        found = installation.examine()

        assert failures(found) == set()
        assert found["labelling"].seen == "No image is left to read: 2 labelled, 1 left out."

    def test_everything_is_labelled_and_the_predictions_were_deleted(self, installation):
        """Nothing waits for a label, so that nothing is published again."""
        installation.answer("normal", "severe", None)
        installation.project["skip_queue"] = "IGNORE_SKIPPED"
        installation.held.clear()

        found = installation.examine()

        assert failures(found) == set()
        assert found["order served"].seen == "every image has a label"

    def test_everything_is_labelled_and_a_class_never_came(self, installation):
        installation.answer("normal", "normal", "normal")
        installation.queue.state = QueueStatus(last_error=LastError(kind="EmptyPool", message="none", at=0))

        found = installation.examine()

        assert failures(found) == set()
        assert "no network can be trained yet" in found["labelling"].seen
        assert found["labelling"].seen.endswith("To train one, import more images")

    def test_images_under_another_key(self, installation):
        installation.project["label_config"] = LABEL_CONFIG.replace("$image", "$film")
        said = "project 7 has no image that can be used: 3 were left out"
        installation.queue.state = QueueStatus(last_error=LastError(kind="UnusablePool", message=said, at=0))

        found = installation.examine()

        assert failures(found) == {"images", "left out", "labelling", "rounds"}
        assert "3 tasks without a label have no image, the first: task 1 has no image under 'film'" in (
            found["left out"].seen
        )
        assert "value of the label config's Image tag" in found["left out"].remedy

    def test_labels_that_are_no_class(self, installation):
        installation.answer("grave", "normal")

        found = installation.examine()

        assert failures(found) == {"left out"}
        assert found["left out"].seen.startswith("1 image is labelled as no class: image 1 is labelled 'grave'")

    def test_labels_that_are_left_out_come_before_more_images(self, installation):
        installation.answer("grave", "grave", "normal")

        labelling = installation.examine()["labelling"]

        assert "import more" not in labelling.seen + labelling.remedy
        assert labelling.remedy.startswith(
            "correct or delete the annotations, or give the label config the choice that"
        )

    def test_what_is_left_out_on_purpose_is_told_and_no_failure(self, installation):
        installation.answer(None, "normal")
        installation.project["skip_queue"] = "IGNORE_SKIPPED"

        found = installation.examine()

        assert failures(found) == set()
        assert "1 image has no answer: its reader skipped image 1" in found["left out"].seen

    def test_a_large_project_that_was_never_read(self, installation):
        installation.project["task_number"] = 1001

        found = installation.examine()

        assert (found["labelling"].verdict, found["left out"].verdict) == ("skip", "skip")
