"""Rounds that outlast the access token: reading, images and publishing, with either kind of key."""

import base64
import json

import httpx
import pytest

from ml_backend.errors import RequestRefused
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.images import LabelStudioImages
from ml_backend.schemas import ImageRef

URL = "http://label-studio:8080"
LIFE_S = 300
PNG = b"\x89PNG\r\n\x1a\n..."


def jwt(**claims: object) -> str:
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"head.{body}.signature"


PERSONAL = jwt(token_type="refresh", exp=9e9)
LEGACY = "0" * 40


class Studio:
    """A Label Studio in which every request takes ``step_s`` seconds, by its own clock.

    It knows which access tokens it gave out and when, refuses the older ones as the real one does, and counts.
    """

    def __init__(self, step_s: float) -> None:
        self.now = 50_000.0
        self.step_s = step_s
        self.given: dict[str, float] = {}
        self.refused = 0
        self.imported: list[int] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.now += self.step_s
        if request.url.path == "/api/token/refresh/":
            assert json.loads(request.content) == {"refresh": PERSONAL}
            access = jwt(token_type="access", iat=self.now, exp=self.now + LIFE_S)
            self.given[f"Bearer {access}"] = self.now + LIFE_S
            return httpx.Response(200, json={"access": access})
        key = request.headers["authorization"]
        if key != f"Token {LEGACY}" and self.given.get(key, 0.0) < self.now:
            self.refused += 1
            return httpx.Response(401, json={"detail": "Token is expired"})
        return self._answer(request)

    def restart_with_other_secrets(self) -> None:
        self.given.clear()

    def _answer(self, request: httpx.Request) -> httpx.Response:
        if request.method == "GET" and request.url.path == "/api/projects/1/":
            return httpx.Response(200, json={"id": 1})
        if request.url.path.startswith("/data/upload/"):
            return httpx.Response(200, content=PNG, headers={"content-type": "image/png"})
        sent = json.loads(request.content)
        self.imported.append(len(sent))
        return httpx.Response(201, json={"created": len(sent)})


def round_of(studio: Studio, key: str) -> None:
    """What a round asks of Label Studio, in its order: it reads, fetches images, and imports predictions."""
    client = LabelStudioClient(URL, key, transport=httpx.MockTransport(studio), retries=1)
    images = LabelStudioImages(client)

    assert [client.project(1)["id"] for _ in range(4)] == [1, 1, 1, 1]
    for number in range(20):
        assert images.fetch(ImageRef(id=str(number + 1), uri=f"/data/upload/1/{number}.png")) == PNG
    for _ in range(3):
        assert client.import_predictions(1, [{"task": 1, "result": []}]) == 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[Studio]:
    """Our clock and Label Studio's run alike, 49,000 s apart; the test puts its Label Studio into the list."""
    studios: list[Studio] = []
    monkeypatch.setattr("ml_backend.label_studio.client.time.monotonic", lambda: studios[0].now - 49_000)
    return studios


class TestLongRounds:
    def test_a_personal_token_is_renewed_before_it_dies(self, clock: list[Studio]) -> None:
        """27 requests of 40 s are 18 minutes; renewed every 210 s, and no request is ever refused."""
        studio = Studio(40)
        clock.append(studio)

        round_of(studio, PERSONAL)

        assert studio.now - 50_000 > 3 * LIFE_S
        assert len(studio.given) >= 4
        assert studio.refused == 0

    def test_a_legacy_token_lasts(self, clock: list[Studio]) -> None:
        studio = Studio(40)
        clock.append(studio)

        round_of(studio, LEGACY)

        assert not studio.given
        assert studio.imported == [1, 1, 1]

    def test_a_token_that_dies_in_the_middle_is_renewed_once_and_the_request_repeated(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Our clock stands still, as that of a machine that was put to sleep: Label Studio says that it is over."""
        monkeypatch.setattr("ml_backend.label_studio.client.time.monotonic", lambda: 0.0)
        studio = Studio(40)

        round_of(studio, PERSONAL)

        assert studio.refused >= 3
        assert len(studio.given) == studio.refused + 1
        assert studio.imported == [1, 1, 1]  # a refused import has imported nothing

    def test_a_label_studio_that_forgot_its_tokens(self) -> None:
        studio = Studio(0)
        client = LabelStudioClient(URL, PERSONAL, transport=httpx.MockTransport(studio), retries=1)
        client.project(1)

        studio.restart_with_other_secrets()

        assert client.import_predictions(1, [{}]) == 1
        assert (studio.refused, studio.imported) == (1, [1])

    def test_a_token_that_is_refused_afresh_is_not_tried_for_ever(self) -> None:
        studio = Studio(LIFE_S + 1)  # dead on arrival
        client = LabelStudioClient(URL, PERSONAL, transport=httpx.MockTransport(studio), retries=1)

        with pytest.raises(RequestRefused, match="401"):
            client.project(1)
        assert studio.refused == 2
