"""``/predict``: answers from the store, without a network.

Label Studio stores every answer as a prediction. Under the version of the ranking it would enter the order of the pool
unranked, so it gets a version of its own, and no score.
"""

from collections.abc import Sequence

from ml_backend.label_studio.formats import LabelConfig, prediction
from ml_backend.records import Connection, Ranking
from ml_backend.server.connections import configuration, version
from ml_backend.storage import RoundStore

__all__ = ["LIVE", "predict"]

Answer = dict[str, object]

LIVE = "-live"  # appended to the version of the ranking; no ranking's version ends so


def predict(image_ids: Sequence[str], connection: Connection, store: RoundStore) -> list[Answer]:
    """One answer an image, in their order: the last round's suggestion where the owner wants pre-labels, else empty.

    Raises:
        PayloadError: the label config cannot be read.
        SettingsError: an option has a wrong name or value.
    """
    config, options = configuration(connection)
    live = version(connection.project, store) + LIVE
    report = store.project(connection.project).latest() if options.prelabel else None
    return [_prediction(image_id, None if report is None else report.ranking, live, config) for image_id in image_ids]


def _prediction(image_id: str, ranking: Ranking | None, model_version: str, config: LabelConfig) -> Answer:
    suggestion = None if ranking is None else ranking.suggestions.get(image_id)
    # A class that has left the label config since would be refused.
    known = suggestion if suggestion in config.classes else None
    confidence = None if ranking is None else ranking.confidences.get(image_id)
    answer = prediction(image_id, 0.0, model_version, config, known, confidence=confidence)
    return {"result": answer["result"], "model_version": model_version}
