"""One command from a folder of studies to the first order, on a real Label Studio; and a search for leaked names."""

import io
import json
import os
import re
import subprocess
import sys
import threading
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pydicom
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian
from redis import Redis

from ml_backend.demo.options import draw_images
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.connect import read_label_config
from ml_backend.label_studio.images import LabelStudioImages
from ml_backend.schemas import ImageRef
from ml_backend.storage import RoundStore
from tests.bucket import serving_bucket
from tests.command_line import run_cli
from tests.manual import commands_run_by

pytestmark = pytest.mark.system

SECRETS = ("Quixotebaum", "MRN4711QX", "Xanthippeklinik", "4711471147114711")
NAME, PATIENT, PLACE, UID = SECRETS
SMALL = (
    'model_strategy="mean_std" model_backbone="resnet18" model_weights="none" model_image_side="64" '
    'model_cold_start="random"'
)
TITLE = "Chest"
TAKEN = 20


def dicom(number: int, view: str = "PA", **more: object) -> bytes:
    """A radiograph that names its patient wherever text may stand."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.Modality = DigitalXRayImageStorageForPresentation, "DX"
    dataset.PatientID, dataset.PatientName = f"{PATIENT}{number % 2}", f"{NAME}^Zoe"
    dataset.StudyDate, dataset.ViewPosition = f"201903{1 + number:02}", view
    dataset.SOPInstanceUID = dataset.StudyInstanceUID = dataset.SeriesInstanceUID = f"1.2.{UID}.{number}"
    for tag in ("InstitutionName", "InstitutionAddress", "StationName", "StudyDescription", "SeriesDescription"):
        setattr(dataset, tag, PLACE)
    for tag in ("ReferringPhysicianName", "OperatorsName", "PatientComments", "PatientAddress", "ImageComments"):
        setattr(dataset, tag, NAME)
    dataset.AccessionNumber = dataset.OtherPatientIDs = PATIENT
    item = Dataset()
    item.CodeMeaning = NAME
    dataset.ProcedureCodeSequence = [item]
    dataset.add_new(0x00091001, "LO", NAME)
    rng = np.random.default_rng(number)
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 96, 80, 1
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.PhotometricInterpretation = "MONOCHROME1" if number == 3 else "MONOCHROME2"
    dataset.PixelData = rng.integers(0, 4096, (96, 80), np.uint16).tobytes()
    for tag, value in more.items():
        setattr(dataset, tag, value)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    file = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):
        pydicom.dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


def write_studies(folder: Path) -> None:
    """32 files, of which 20 become tasks."""
    files: dict[str, bytes] = {f"a/{NAME}_{n}.dcm": dicom(n) for n in range(8)}
    files["lateral.dcm"], files["ct"] = dicom(20, "LL"), dicom(21, SOPClassUID=CTImageStorage, Modality="CT")
    files["again.dcm"] = dicom(0, PatientName="Another^One")
    files["frames.dcm"] = dicom(22, NumberOfFrames=2, PixelData=bytes(2 * 2 * 96 * 80))
    files["cut.dcm"], files["empty.dcm"] = dicom(23)[:-500], b""
    # Of a function that is not known, whose name must not be repeated.
    files["odd.dcm"] = dicom(24, VOILUTFunction=PLACE.upper(), WindowCenter=2000, WindowWidth=900)
    files["README.txt"], files["noise.png"] = NAME.encode(), os.urandom(500)
    text, exif = PngInfo(), Image.Exif()
    text.add_text("Patient", NAME)
    exif[0x010E] = PLACE
    drawn = [Image.open(io.BytesIO(one.content)) for one in draw_images(12, seed=3, side=96)]
    for number, image in enumerate(drawn):
        file = io.BytesIO()
        image.save(file, *(("PNG",) if number < 9 else ("JPEG",)), pnginfo=text, exif=exif, comment=NAME)
        files[f"b/{PATIENT}/{number}"] = file.getvalue()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("../up.png", files[f"b/{PATIENT}/0"])
        archive.writestr("same.png", files[f"b/{PATIENT}/1"])
    files["more.zip"] = packed.getvalue()
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "passwd.png").symlink_to("/etc/passwd")


class KillingProxy(ThreadingHTTPServer):
    """Passes requests on to Label Studio; kills ``process`` when it makes tasks, before or after Label Studio knows."""

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = target
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.process: subprocess.Popen[bytes] | None = None
        self.before = True
        self.uploads = 0


class _Handler(BaseHTTPRequestHandler):
    server: KillingProxy

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        headers = {name: self.headers[name] for name in ("authorization", "content-type") if name in self.headers}
        commits = "commit_to_project=true" in self.path
        if not (commits and self.server.before):
            url = f"{self.server.target}{self.path}"
            answer = httpx.request(self.command, url, content=body, headers=headers, timeout=60, trust_env=False)
        self.server.uploads += "commit_to_project=false" in self.path
        if commits:
            assert self.server.process is not None
            self.server.process.kill()
            return
        self.send_response(answer.status_code)
        self.send_header("content-type", answer.headers.get("content-type", "text/plain"))
        self.send_header("content-length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    do_POST = do_PATCH = do_DELETE = do_GET  # noqa: N815 - http.server's names

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def proxy(label_studio) -> Iterator[KillingProxy]:
    with KillingProxy(label_studio.url) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def tasks_of(client: LabelStudioClient, project: int) -> list[dict[str, Any]]:
    query = {"project": str(project), "include": "id,data,meta", "page_size": "1000", "resolve_uri": "false"}
    return client.request("GET", "/api/tasks", dict, query=query)["tasks"]  # type: ignore[no-any-return]


def leaks(folders: list[Path], valkey_url: str, texts: list[bytes]) -> dict[str, set[str]]:
    """Secret -> where it stands: in files below the folders, in Redis, or in other texts."""
    found: dict[str, set[str]] = {}
    places = [(str(path), path.read_bytes()) for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert len(places) > 20
    with Redis.from_url(valkey_url) as redis:
        redis.config_set("rdbcompression", "no")
        for key in redis.scan_iter():
            places.append((f"Redis {key!r}", key + (redis.dump(key) or b"")))
            if redis.type(key) == b"hash" and (data := redis.hget(key, "data")):
                with suppress(zlib.error):
                    places.append((f"job {key!r}", zlib.decompress(data)))
    assert any(name.startswith("Redis") for name, _ in places)
    places += [("Label Studio", text) for text in texts]
    for secret in SECRETS:
        for name, content in places:
            if secret.lower().encode() in content.lower():
                found.setdefault(secret, set()).add(name)
    return found


@pytest.fixture
def connected(label_studio, backend, worker, tmp_path) -> Iterator[Callable[..., dict[str, Any]]]:
    """Imports by the command and fetches what the tasks name, as a worker does; deletes the project."""
    config = tmp_path / "small.xml"
    config.write_text(read_label_config("severity").replace('model_strategy="mean_std"', SMALL))
    with LabelStudioClient(label_studio.url, label_studio.api_key) as client, ExitStack() as stack:

        def run(source: str, *words: str, **environ: str) -> dict[str, Any]:
            words = ("--title", f"Import {len(words)}", "--label-config", str(config), "--url", backend.url, *words)
            ended = run_cli(["import", source, "--json", *words], backend.environ | environ, tmp_path)
            assert ended.stdout, ended.stderr
            found: dict[str, Any] = json.loads(ended.stdout)
            stack.callback(client.send, "DELETE", f"/api/projects/{found['project']}/")
            tasks, images = tasks_of(client, found["project"]), LabelStudioImages(client)
            found["data"] = [task["data"] for task in tasks]
            found["contents"] = [
                images.fetch(ImageRef(id=str(task["id"]), uri=task["data"]["image"])) for task in tasks
            ]
            return found

        yield run


def test_images_in_a_bucket_stay_there(connected):
    drawn = draw_images(3, seed=4, side=64)
    with serving_bucket() as bucket:
        for image in drawn:
            bucket.put(f"chest/a b/{image.name}", image.content)
        bucket.put("chest/x.dcm", dicom(1))
        keys = {"AWS_ACCESS_KEY_ID": "first-key", "AWS_SECRET_ACCESS_KEY": "x", "AWS_ENDPOINT_URL": bucket.url}

        found = connected(f"s3://{bucket.name}/chest", "--leave-in-place", **keys)

    assert (found["taken"], found["refused"], found["missing"]) == (3, 1, "")
    assert [one["image"] for one in found["data"]] == [f"s3://{bucket.name}/chest/a b/{one.name}" for one in drawn]
    assert found["contents"] == [one.content for one in drawn]


def test_images_below_the_document_root_stay_there(connected, label_studio):
    root = label_studio.document_root
    if root is None:
        pytest.skip("the document root of that Label Studio is not known")
    folder = root / "chest"
    folder.mkdir(parents=True)
    drawn = draw_images(3, seed=5, side=64)
    rows = ["path,Patient ID,study_date,sex,site"]
    for number, image in enumerate(drawn):
        (folder / image.name).write_bytes(image.content)
        rows.append(f"{image.name},ORBIS77,2019030{number + 1},f,")
    (folder / "t.csv").write_text("\n".join(rows))
    words = ("--leave-in-place", "--document-root", str(root), "--columns", "sex,Patient ID,study_date,site")

    found = connected(str(folder / "t.csv"), *words)

    assert (found["taken"], found["missing"]) == (3, "")
    assert [one.pop("image") for one in found["data"]] == [f"/data/local-files/?d=chest/{one.name}" for one in drawn]
    assert {frozenset(one) for one in found["data"]} == {frozenset({"patient_id", "study_date", "sex"})}
    assert "ORBIS77" not in json.dumps(found["data"])
    assert "2019-03" not in json.dumps(found["data"])
    assert found["contents"] == [one.content for one in drawn]


def test_one_command_from_a_folder_to_the_first_order(
    label_studio, backend, worker, proxy, tmp_path_factory: pytest.TempPathFactory
):
    base = tmp_path_factory.getbasetemp()
    services = [folder for folder in base.iterdir() if folder.is_dir()]
    hospital = tmp_path_factory.mktemp("hospital")
    studies, state = hospital / "studies", hospital / "state"
    state.mkdir()
    write_studies(studies)
    config = state / "small.xml"
    config.write_text(read_label_config("severity").replace('model_strategy="mean_std"', SMALL))
    [tried, command] = commands_run_by(__file__)
    own = {"/data/studies": str(studies), "http://backend.example.org:9090": backend.url}
    words = [own.get(word, word) for word in command.words[1:]]
    words += ["--label-config", str(config), "--out", str(state / "import"), "--json"]
    assert words[:4] == ["import", str(studies), "--title", TITLE]

    plan = run_cli([own.get(word, word) for word in tried.words[1:]], backend.environ, state)
    assert plan.returncode == 1
    assert f"{TAKEN} taken, 5 skipped, 7 refused; nothing was changed" in plan.stdout

    with LabelStudioClient(label_studio.url, label_studio.api_key) as client:
        assert [row for row in client.projects(TITLE) if row["title"] == TITLE] == []
        for before in (True, False):
            proxy.before = before
            environ = backend.environ | {"AL_LABEL_STUDIO_URL": proxy.url}
            proxy.process = subprocess.Popen(
                [sys.executable, "-m", "ml_backend", *words], env=environ, stdout=subprocess.DEVNULL
            )
            assert proxy.process.wait(120) == -9
            [row] = [row for row in client.projects(TITLE) if row["title"] == TITLE]
            assert len(tasks_of(client, row["id"])) == (0 if before else TAKEN)
        alone = run_cli([*words, "--url", "http://127.0.0.1:9"], backend.environ, state)
        foreign = run_cli([*words, "--key-file", str(state / "another")], backend.environ, state)
        ended = run_cli(words, backend.environ, state)

        project = row["id"]
        try:
            result, tasks = json.loads(ended.stdout), tasks_of(client, project)
            served = client.project(project)["model_version"]
            contents = [client.download(task["data"]["image"], max_bytes=2**20)[0] for task in tasks]
            rows = [client.request("GET", f"/api/tasks/{task['id']}", dict) for task in tasks]
            held = client.model_versions(project)
            texts = [*contents, json.dumps([tasks, rows]).encode()]
            found = leaks(services, backend.environ["AL_REDIS_URL"], texts)
        finally:
            client.send("DELETE", f"/api/projects/{project}/")

    # The table comes also where the backend does not answer, and no patient gets a second pseudonym.
    assert alone.returncode == 1
    assert "does `ml-backend serve` run" in json.loads(alone.stdout)["missing"]
    assert foreign.returncode == 1
    assert "was imported with another key" in foreign.stderr

    # Nothing twice, everything that was refused named, and an order served.
    assert proxy.uploads == 2
    assert ended.returncode == 1
    assert (result["project"], result["taken"], result["missing"]) == (project, 0, "")
    reasons = {(one["outcome"], one["reason"]): one for one in result["groups"]}
    assert reasons["skipped", "in the project already"]["count"] == TAKEN
    refused = {name for (outcome, _), one in reasons.items() if outcome == "refused" for name in one["first"]}
    assert refused == {"cut.dcm", "empty.dcm", "frames.dcm", "more.zip/../up.png", "noise.png", "odd.dcm", "passwd.png"}
    assert held[served] == TAKEN

    # What the tasks hold.
    assert len({task["meta"]["pixels"] for task in tasks}) == TAKEN
    images = [Image.open(io.BytesIO(content)) for content in contents]
    assert {(image.format, image.mode, bool(image.info)) for image in images} == {("PNG", "L", False)}
    assert {frozenset(task["data"]) for task in tasks} == {
        frozenset({"image"}),
        frozenset({"image", "patient_id", "study_date", "view"}),
    }
    days: dict[str, list[date]] = {}
    for task in tasks:
        if "patient_id" in task["data"]:
            assert re.fullmatch(r"[A-Z2-7]{16}", task["data"]["patient_id"])
            days.setdefault(task["data"]["patient_id"], []).append(date.fromisoformat(task["data"]["study_date"]))
    assert [sorted((day - min(of_one)).days for day in of_one) for of_one in days.values()] == [[0, 2, 4, 6]] * 2
    assert not {day for of_one in days.values() for day in of_one} & {date(2019, 3, n) for n in range(1, 9)}

    # Names of files are printed, and nothing of what is in them; the ledger knows neither.
    printed = "".join(one.stdout + one.stderr for one in (plan, alone, foreign, ended)).lower()
    printed += (state / "import" / "files.csv").read_text().lower()
    assert "odd.dcm" in printed
    assert not [secret for secret in (PLACE, UID) if secret.lower() in printed]
    [ledger] = [path.read_bytes().lower() for path in (state / "import").glob("ledger.sqlite3")]
    assert not [secret for secret in SECRETS if secret.lower().encode() in ledger]

    # Nothing else left the files; and the search finds what is there.
    assert found == {}
    assert leaks([studies], backend.environ["AL_REDIS_URL"], []).keys() == set(SECRETS)
    assert RoundStore(Path(backend.environ["AL_DATA_DIR"])).connection(project).project.id == project
