"""The network behind BentoML, with BentoML's batching."""

from pathlib import Path
from typing import Any

import bentoml

from benchmarks.peers import MAX_BATCH, Peer


@bentoml.service(workers=1, traffic={"timeout": 120})
class Service:
    """One worker that predicts batches of uploaded images."""

    def __init__(self) -> None:
        self.peer = Peer()

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=60_000)
    def predict(self, images: list[Path]) -> list[dict[str, Any]]:
        read = [self.peer.decode(path.read_bytes()) for path in images]
        predictions = self.peer.predict([stored for _, stored in read])
        return [
            self.peer.encode(image, found)
            for (image, _), found in zip(read, predictions, strict=True)
        ]
