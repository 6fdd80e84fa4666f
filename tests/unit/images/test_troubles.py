import httpx
import pytest

from ml_backend.errors import ImageError, LabelStudioError, RequestRefused
from ml_backend.images.decode import UndecodableImage, trouble_of


def caused_by(*causes: Exception) -> ImageError:
    """Each raised from the next."""
    error = ImageError("image 9 cannot be had")
    last: Exception = error
    for cause in causes:
        last.__cause__ = cause
        last = cause
    return error


class TestTroubleOf:
    @pytest.mark.parametrize(
        ("status", "trouble"),
        [
            (401, "forbidden"),
            (403, "forbidden"),
            (404, "missing"),
            (410, "missing"),
            (413, "too-large"),
            (429, "unreachable"),
            (500, "refused"),  # what Label Studio answers where an upload is gone
            (503, "unreachable"),
        ],
    )
    def test_by_the_status_of_the_answer(self, status, trouble):
        assert trouble_of(caused_by(RequestRefused("no", status))) == trouble

    @pytest.mark.parametrize(
        ("cause", "trouble"),
        [
            (FileNotFoundError(), "missing"),
            (IsADirectoryError(), "missing"),
            (PermissionError(), "forbidden"),
            (TimeoutError(), "timed-out"),
            (ConnectionResetError(), "unreachable"),
            (httpx.ReadTimeout("slow"), "timed-out"),
            (httpx.ConnectError("no"), "unreachable"),
            (httpx.RemoteProtocolError("hung up"), "unreachable"),
        ],
    )
    def test_by_what_went_wrong(self, cause, trouble):
        assert trouble_of(caused_by(cause)) == trouble
        assert trouble_of(caused_by(LabelStudioError("no answer"), cause)) == trouble

    def test_an_error_that_says_it_itself(self):
        assert trouble_of(UndecodableImage("half a film", "damaged")) == "damaged"

    def test_nothing_is_known(self):
        assert trouble_of(ImageError("no address")) == "refused"
        assert trouble_of(caused_by(ValueError("odd"))) == "refused"
