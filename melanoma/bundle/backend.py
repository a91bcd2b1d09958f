"""The network up to its last feature map, exported for ONNX Runtime, which computes it two to three times as fast on CPUs.

The head stays torch's: it is small, and Grad-CAM needs its gradient. Knows nothing of bundles or of
what a head makes of the map.
"""

import os
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from melanoma.training.networks import features

# Read when the library is loaded: without it an id of this machine is written to HOME and a host of
# Microsoft's is asked for.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime

_INPUT, _OUTPUT = "images", "feature_map"


class _Features(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return features(self.model, images)


def export_features(model: nn.Module, input_size: tuple[int, int]) -> bytes:
    """Return the network up to its last feature map as an ONNX model, for any number of ``(3, H, W)`` images of one size, px.

    Raises:
        torch.onnx.OnnxExporterError: if the network holds what ONNX cannot say.
    """
    images = torch.zeros(2, 3, *input_size, device=next(model.parameters()).device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own workings
        program = torch.onnx.export(
            _Features(model).eval(),
            (images,),
            input_names=[_INPUT],
            output_names=[_OUTPUT],
            dynamic_shapes={"images": {0: torch.export.Dim("num")}},
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # of the signature: it is returned wherever no file is asked for
    return bytes(program.model_proto.SerializeToString())


class OnnxFeatures:
    """A network's features on the CPU. Threads may share it."""

    def __init__(self, model: Path | bytes, *, num_threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        # Threads that wait by spinning take the cores from whatever else runs beside a replica.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        source = model if isinstance(model, bytes) else str(model)
        self._session = onnxruntime.InferenceSession(
            source, options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, images: Tensor) -> Tensor:
        """Return the last feature map ``(N, K, h, w)`` of ``(N, 3, H, W)`` float32 images."""
        (feature_map,) = self._session.run([_OUTPUT], {_INPUT: images.contiguous().numpy()})
        return torch.from_numpy(feature_map)
