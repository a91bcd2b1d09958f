"""The network behind LitServe, with LitServe's batching."""

import sys
from typing import Any

import litserve
from fastapi import Request

from benchmarks.peers import MAX_BATCH, Peer


class Api(litserve.LitAPI):
    """The steps of one prediction, as LitServe calls them."""

    def setup(self, device: str) -> None:
        self.peer = Peer()

    def decode_request(self, request: Request) -> Any:
        return self.peer.decode(request["image"].file.read())

    def batch(self, inputs: list[Any]) -> list[Any]:
        return inputs

    def predict(self, inputs: list[Any]) -> list[Any]:
        predictions = self.peer.predict([stored for _, stored in inputs])
        return [
            (image, prediction) for (image, _), prediction in zip(inputs, predictions, strict=True)
        ]

    def unbatch(self, output: list[Any]) -> list[Any]:
        return output

    def encode_response(self, output: Any) -> dict[str, Any]:
        return self.peer.encode(*output)


if __name__ == "__main__":
    api = Api(max_batch_size=MAX_BATCH, batch_timeout=0.001, api_path="/predict")
    litserve.LitServer(api, accelerator="cpu", workers_per_device=1).run(
        host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="error"
    )
