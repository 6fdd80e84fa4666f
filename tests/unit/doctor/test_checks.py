"""The doctor on an installation in memory: all well, and what the system tests cannot break."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from torchvision import models

from ml_backend.doctor import checks
from ml_backend.doctor.checks import CHECKS, CUDA_OVERHEAD, PER_WEIGHT, ground_truth_note, step_memory
from ml_backend.errors import SettingsError
from ml_backend.scheduling import LastError, QueueStatus
from ml_backend.storage import RoundStore
from tests.fakes import make_fit, make_report
from tests.label_configs import LEARNED, REFUSED
from tests.unit.doctor.installation import BACKEND, KEY, failures
from tests.unit.label_studio.studio import LABEL_CONFIG
from tests.unit.label_studio.test_sync import answer, cache_of

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
        assert REFUSED[name].said in found["label config"].seen
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


class TestSettings:
    def test_wrong_ones_are_all_named_at_once_and_all_else_is_skipped(self, installation):
        installation.settings |= {"timeout_s": "soon", "device": "tpu"}

        found = installation.examine()

        assert failures(found) == {"settings"}
        assert "AL_TIMEOUT_S='soon'" in found["settings"].seen
        assert "AL_DEVICE='tpu'" in found["settings"].seen
        assert {one.verdict for name, one in found.items() if name != "settings"} == {"skip"}


class TestLabelStudio:
    def test_another_version_is_said_and_no_failure(self, installation):
        installation.release = {"release": "1.30.0"}

        seen = installation.examine()["Label Studio"]

        assert seen.verdict == "ok"
        assert seen.seen == "1.30.0 at http://ls:8080; tested is 1.23.2, others mostly work"

    @pytest.mark.parametrize("answer", [["a list"], {"version": "5.0"}])
    def test_somebody_else_answers(self, installation, answer):
        installation.release = answer

        found = installation.examine()

        assert "is no Label Studio" in found["Label Studio"].seen
        assert found["API key"].verdict == "skip"

    def test_the_address_holds_a_password(self, installation):
        installation.settings["label_studio_url"] = "http://me:my-secret@ls:8080"

        found = installation.examine()

        assert "user or a password" in found["settings"].seen
        assert "my-secret" not in str(found)

    def test_no_key_is_set(self, installation):
        del installation.settings["label_studio_api_key"]

        found = installation.examine()

        assert failures(found) == {"API key"}
        assert "AL_LABEL_STUDIO_API_KEY is not set" in found["API key"].seen

    def test_the_user_may_not_change_projects(self, installation):
        installation.user["permissions"].remove("projects.change")

        found = installation.examine()

        assert failures(found) == {"API key"}
        assert found["API key"].seen == "legacy token of owner@example.com, who lacks projects.change"

    def test_no_such_project(self, installation):
        installation.project["id"] = 8

        found = installation.examine()

        assert failures(found) == {"project"}
        assert "no project 7" in found["project"].seen

    def test_a_project_without_images(self, installation):
        """Nothing is wrong with it yet, also where its first round has found none."""
        installation.empty()
        installation.queue.state = QueueStatus(last_error=LastError(kind="EmptyPool", message="no images yet", at=0))

        found = installation.examine()

        assert failures(found) == set()
        assert "import images" in found["project"].seen
        assert "no images yet" in found["labelling"].seen
        assert found["images"].verdict == "skip"


class TestConnection:
    @pytest.mark.parametrize(
        ("paths", "said"),
        [
            ({"/api/ml"}, "no backends at"),
            ({"/api/webhooks/"}, "no webhooks at"),
            ({"/api/ml", "/api/webhooks/"}, "no backends and no webhooks at"),
        ],
    )
    def test_label_studio_may_not_call_private_addresses(self, installation, paths, said):
        """What it says to requests that could make nothing even if it might."""
        installation.blocks = paths

        found = installation.examine()

        assert failures(found) == {"private addresses"}
        assert said in found["private addresses"].seen
        assert "reserved network address" in found["private addresses"].seen
        assert "LABEL_STUDIO_SSRF_PROTECTION_ENABLED=false" in found["private addresses"].remedy

    def test_a_state_of_error_is_told_as_label_studio_tells_it(self, installation):
        installation.backends[0] |= {"state": "ER", "error_message": "401 Client Error: user and password are wanted"}

        found = installation.examine()

        assert "401 Client Error" in found["connection"].seen
        assert "AL_BASIC_AUTH_USER" in found["connection"].remedy

    def test_another_user_than_these_settings_have(self, installation):
        installation.backends[0]["basic_auth_user"] = "somebody"

        assert "'somebody'" in installation.examine()["connection"].seen

    def test_events_that_get_lost(self, installation, monkeypatch):
        monkeypatch.setattr(checks, "ARRIVES_WITHIN_S", 0.3)
        installation.delivers = False

        found = installation.examine()

        assert failures(found) == {"event arrives"}
        assert BACKEND in found["event arrives"].remedy


class TestOrder:
    def test_before_the_first_ranking(self, installation, tmp_path):
        (RoundStore(tmp_path).project(KEY).folder / "published.json").unlink()
        installation.project["model_version"] = ""

        found = installation.examine()

        assert failures(found) == set()
        assert found["order served"].verdict == found["predictions"].verdict == "skip"

    @pytest.mark.parametrize("name", ["published.json", "versions.json"])
    def test_a_damaged_record_of_what_is_served(self, installation, tmp_path, name):
        """Without it nobody knows what Label Studio should hold: not the moment to say that all is well."""
        (RoundStore(tmp_path).project(KEY).folder / name).write_text('{"ver')

        found = installation.examine()

        assert "rounds on disk" in failures(found)
        assert name in found["rounds on disk"].seen
        assert found["predictions"].verdict == "skip"

    def test_the_title_before_the_first_ranking(self, installation, tmp_path):
        (RoundStore(tmp_path).project(KEY).folder / "published.json").unlink()
        installation.project["model_version"] = "Active learning"

        found = installation.examine()

        assert "random order" in found["order served"].seen
        assert "ml-backend connect" in found["order served"].remedy

    def test_the_ranking_of_another_installation_has_its_own_way_out(self, installation):
        installation.project["model_version"] = "al-r000009-bald-0a1b2c"

        found = installation.examine()

        assert failures(found) == {"order served"}
        assert found["order served"].remedy.startswith("stop the other installation")

    @pytest.mark.parametrize("held", [0, 2, 4])
    def test_other_predictions_than_were_published(self, installation, held):
        installation.held["al-r000001-x"] = held

        found = installation.examine()

        assert failures(found) == {"predictions"}
        assert f"holds {held} predictions of al-r000001-x, and 3 of its images" in found["predictions"].seen

    def test_deleted_tasks_take_their_predictions_along(self, installation):
        installation.uris.pop()
        installation.held["al-r000001-x"] = 2

        found = installation.examine()

        assert found["predictions"].verdict == "ok"
        assert "1 images were deleted since" in found["predictions"].seen

    def test_rounds_only_by_hand_are_the_owners_choice(self, installation):
        installation.project["min_annotations_to_start_training"] = 0

        assert installation.examine()["automatic rounds"].seen.startswith("off")


class TestImages:
    def test_a_host_that_is_not_allowed(self, installation):
        installation.uris[1] = "http://films.example/1.png"

        found = installation.examine()

        assert failures(found) == {"images"}
        assert "2 of 3" in found["images"].seen
        assert "AL_IMAGE_HOSTS" in found["images"].remedy

    def test_a_file_that_is_no_image(self, installation):
        installation.images[installation.uris[0]] = b"PK\x03\x04 an archive"

        assert "export the images again" in installation.examine()["images"].remedy

    def test_a_project_that_is_labelled_to_the_end(self, installation):
        """Then any of its images will do."""
        del installation.uris[1:]

        assert installation.examine()["images"].seen.startswith("1 decoded")


class TestWorker:
    def test_the_last_round_failed(self, installation):
        error = LastError(kind="WeightsError", message="the weights are gone", at=1_700_000_000.0)
        installation.queue.state = QueueStatus(last_error=error, next_attempt=1_700_003_600.0)

        found = installation.examine()

        assert failures(found) == {"rounds"}
        assert "WeightsError: the weights are gone" in found["rounds"].seen
        assert "tried again by itself at 23:13 UTC" in found["rounds"].remedy

    def test_what_waits_and_what_runs_is_told(self, installation):
        installation.queue.state = QueueStatus(running="labels", waiting="images", changes=12, threshold=20)

        assert installation.examine()["rounds"].seen == (
            "runs: labels, waits: images; 12 of 20 labels to the next; 0 done, 0 failed"
        )


class TestMachine:
    def test_a_folder_that_cannot_be_written(self, installation, tmp_path, monkeypatch):
        """As root one may write anywhere, so the disk itself refuses."""

        def refuse(*_: object) -> None:
            raise OSError(30, "Read-only file system")

        monkeypatch.setattr("ml_backend.doctor.checks.write_atomically", refuse)

        found = installation.examine()

        assert failures(found) == {"data folder"}
        assert "Read-only file system" in found["data folder"].seen
        assert found["space"].verdict == "skip"

    def test_no_folder(self, installation, tmp_path):
        installation.settings["data_dir"] = tmp_path / "nowhere"

        found = installation.examine()

        assert {"data folder", "rounds on disk"} <= failures(found)
        assert not (tmp_path / "nowhere").exists()

    def test_leaves_nothing_in_the_folder(self, installation, tmp_path):
        before = sorted(tmp_path.iterdir())

        installation.examine()

        assert sorted(tmp_path.iterdir()) == before

    @pytest.mark.parametrize(
        ("free_gb", "verdict", "said"),
        [
            (0.1, "FAIL", "0.1 GB free; a round of 3 images keeps up to 0.1 GB"),
            (500.0, "ok", "500.0 GB free"),
        ],
    )
    def test_a_full_disk(self, installation, monkeypatch, free_gb, verdict, said):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=int(free_gb * 1e9)))

        found = installation.examine()["space"]

        assert found.verdict == verdict
        assert said in found.seen

    def test_caches_that_do_not_fit_are_slower_and_no_failure(self, installation, monkeypatch):
        """1 million images of 53 KB and of 8 KB of features: 20 GB, the limit, and 8.2 GB."""
        installation.project["task_number"] = 1_000_000
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=int(10e9)))

        found = installation.examine()["space"]

        assert found.verdict == "ok"
        assert "caches want 28.2 GB" in found.seen

    def test_weights_that_are_missing(self, installation, tmp_path, monkeypatch):
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        installation.backends[0]["extra_params"] = {"weights": "imagenet", "backbone": "resnet18"}

        found = installation.examine()

        assert failures(found) == {"weights"}
        assert "ImageNet's weights for resnet18: not on this machine" in found["weights"].seen
        assert str(tmp_path / "hub" / "checkpoints") in found["weights"].remedy

    def test_weights_of_another_network(self, installation, tmp_path):
        (tmp_path / "mine.pt").write_bytes(b"<html>an error page")
        installation.backends[0]["extra_params"] = {"weights": str(tmp_path / "mine.pt"), "backbone": "resnet18"}

        assert "cannot be read" in installation.examine()["weights"].seen

    def test_an_unknown_network(self, installation):
        installation.backends[0]["extra_params"] = {"weights": "none", "backbone": "resnet51"}

        found = installation.examine()

        assert failures(found) == {"weights"}
        assert "resnet51" in found["weights"].seen


class TestGpu:
    @pytest.fixture(autouse=True)
    def no_gpu(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def test_one_that_is_asked_for_and_not_there(self, installation):
        installation.settings["device"] = "cuda"

        assert failures(installation.examine()) == {"GPU"}

    @pytest.mark.parametrize(("finetune", "said"), [("auto", "heads are trained on the CPU"), ("full", "takes hours")])
    def test_none(self, installation, finetune, said):
        installation.settings["device"] = "auto"
        installation.backends[0]["extra_params"] |= {"finetune": finetune}

        seen = installation.examine()["GPU"]

        assert seen.verdict == "ok"
        assert said in seen.seen

    @pytest.mark.parametrize(
        ("total", "verdict", "said"),
        [
            (80 * 10**9, "ok", "train_batch=64 takes about 2.7 GB"),
            (2 * 10**9, "ok", "halved until it fits"),
            (1 * 10**9, "FAIL", "even 2 images"),
        ],
    )
    def test_one_of_so_much_memory(self, installation, monkeypatch, total, verdict, said):
        """A ResNet18 at 224 pixels in float32: 1.3 GB beside 22 MB an image."""
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (total // 2, total))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
        installation.settings["device"] = "auto"
        installation.backends[0]["extra_params"] |= {"train_batch": 64}

        seen = installation.examine()["GPU"]

        assert seen.verdict == verdict
        assert said in seen.seen


class TestLabels:
    """What is said of the project's labels is what its page says, by the same functions."""

    def told(self, installation, *tasks):
        """Keeps these tasks as the backend's last reading; nothing has changed since."""
        read = cache_of(dict(enumerate(tasks, 1)))
        installation.project |= {
            "task_number": len(tasks),
            "total_annotations_number": read.counts.annotations,
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
        assert found["labelling"].seen.startswith("Every image is labelled: 3 images.")

    def test_everything_is_labelled_and_the_predictions_were_deleted(self, installation):
        """Nothing waits for a label, so that nothing is published again."""
        installation.answer("normal", "severe", None)
        installation.project["skip_queue"] = "IGNORE_SKIPPED"
        installation.held.clear()

        found = installation.examine()

        assert failures(found) == set()
        assert found["order served"].seen == "no image waits for a label"

    def test_everything_is_labelled_and_a_class_never_came(self, installation):
        installation.answer("normal", "normal", "normal")
        installation.queue.state = QueueStatus(last_error=LastError(kind="EmptyPool", message="none", at=0))

        found = installation.examine()

        assert failures(found) == set()
        assert "no network can be trained yet" in found["labelling"].seen
        assert "To train one, import more images; or lower the option min_labels_per_class" in found["labelling"].seen

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

        found = installation.examine()

        assert failures(found) == set()
        assert "1 image was skipped, unreadable or left unanswered" in found["left out"].seen

    def test_a_large_project_that_was_never_read(self, installation):
        installation.project["task_number"] = 1001

        found = installation.examine()

        assert (found["labelling"].verdict, found["left out"].verdict) == ("skip", "skip")


class TestStepMemory:
    def test_grows_with_the_images_and_with_their_area(self):
        small, large = step_memory("resnet18", 112, half=False), step_memory("resnet18", 224, half=False)

        assert large.of(3) - large.of(2) == large.per_image
        assert large.per_image / small.per_image == pytest.approx(4.0, rel=0.02)
        assert small.fixed == large.fixed

    def test_keeps_at_least_the_input_of_every_convolution(self):
        """The first layers of a ResNet18: 3 channels in; 64 out, kept before and after normalisation, and pooled."""
        first = 4 * (3 * 224**2 + 2 * 64 * 112**2 + 64 * 56**2)

        assert first < step_memory("resnet18", 224, half=False).per_image < 20 * first

    def test_counts_every_weight_once(self):
        weights = sum(parameter.numel() for parameter in models.resnet18().parameters())

        assert step_memory("resnet18", 64, half=False).fixed == PER_WEIGHT * weights + CUDA_OVERHEAD

    def test_half_precision_halves_what_is_kept(self):
        whole, half = (step_memory("resnet18", 64, half=half) for half in (False, True))

        assert half.per_image == whole.per_image // 2
        assert half.fixed == whole.fixed

    def test_an_unknown_network(self):
        with pytest.raises(SettingsError, match="resnet51"):
            step_memory("resnet51", 64, half=False)
