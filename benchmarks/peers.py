"""The work that every server of serve_peers.py does for an image.

They share this code, so they differ only in how they handle requests.
"""

import base64
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from PIL import Image

from melanoma.bundle.bundle import load_bundle
from melanoma.bundle.predictor import Predictor
from melanoma.explain.overlay import heatmap_on, overlay
from melanoma.imaging.decode import check_content, decode_image
from melanoma.imaging.png_writer import to_png

MAX_BATCH = 8
BUNDLE, BACKEND, EXPLAIN = "PEER_BUNDLE", "PEER_BACKEND", "PEER_EXPLAIN"


class Peer:
    """Predicts with the bundle that the environment names, on all cores."""

    def __init__(self) -> None:
        num_threads = joblib.cpu_count()
        torch.set_num_threads(num_threads)
        bundle = load_bundle(Path(os.environ[BUNDLE]))
        if os.environ[BACKEND] == "torch":
            bundle = dataclasses.replace(bundle, features_onnx=None)
        self._predictor = Predictor(bundle)
        if os.environ[BACKEND] != "torch":
            # The predictor has given the threads to ONNX Runtime; torch only computes the head.
            torch.set_num_threads(1)
        self._explain = os.environ[EXPLAIN] == "1"

    def decode(self, data: bytes) -> tuple[Image.Image, Any]:
        """Return the upright image, and the stored image that the predictor takes."""
        image = decode_image(data)
        check_content(image)
        return image, self._predictor.bundle.preprocess.stored(image)

    def predict(self, stored: Sequence[Any]) -> list[Any]:
        """Return the predictions for a batch of stored images."""
        return list(self._predictor.predict(stored, explain=self._explain))

    def encode(self, image: Image.Image, prediction: Any) -> dict[str, Any]:
        """Return the answer: probabilities, decision, contract and, if explained, two PNGs."""
        bundle = self._predictor.bundle
        answer = {
            "probabilities": dict(
                zip(bundle.task.classes, prediction.probabilities.tolist(), strict=True)
            ),
            "decision": prediction.decision,
            "contract": dataclasses.asdict(bundle.operating_point.contract),
        }
        if prediction.heatmap is not None:
            shown, heatmap = heatmap_on(image, prediction.heatmap, bundle.preprocess)
            drawn = np.asarray(overlay(shown, heatmap))
            answer["heatmap_png"] = base64.b64encode(to_png(heatmap.values)).decode()
            answer["overlay_png"] = base64.b64encode(to_png(drawn)).decode()
        return answer
