"""The network up to its last feature map, exported for ONNX Runtime.

On CPUs, ONNX Runtime is two to three times as fast as torch. The head stays in torch, because it is
small and Grad-CAM needs its gradient. Knows nothing of bundles or heads.
"""

import math
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from melanoma.arrays import FloatArray
from melanoma.training.networks import features

# ONNX Runtime reads this when it is imported. Without it, the library writes an id of this machine
# to HOME and looks up a host of Microsoft.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime

_INPUT, _OUTPUT = "images", "feature_map"
PIXELS_IN_PASS = 100_000
"""Pixels of the images in one pass of a thread, which holds at least one image. More pixels gain
nothing and need more memory."""


class _Features(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return features(self.model, images)


def export_features(model: nn.Module, input_size: tuple[int, int]) -> bytes:
    """Return the network up to its last feature map as a serialised ONNX model.

    The model takes any number of images ``(N, 3, H, W)``, all of one size.

    Args:
        model: the network.
        input_size: (height, width) of the images, px.

    Raises:
        torch.onnx.OnnxExporterError: if ONNX cannot express the network.
    """
    images = torch.zeros(2, 3, *input_size, device=next(model.parameters()).device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they concern the internals of the exporter
        program = torch.onnx.export(
            _Features(model).eval(),
            (images,),
            input_names=[_INPUT],
            output_names=[_OUTPUT],
            dynamic_shapes={"images": {0: torch.export.Dim("num")}},
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # for mypy: without an output file, a program is always returned
    return bytes(program.model_proto.SerializeToString())


class OnnxFeatures:
    """Computes a network's feature maps on the CPU. Threads may share it.

    The images are shared out among threads, each of which computes passes of a few images on its
    own. That is faster than threads that share every layer, because they need not wait for each
    other.
    Calls with fewer images than threads do share every layer.

    Args:
        model: the exported network, as a file or as its bytes.
        num_threads: threads of the shared passes; threads of a call with few images.
    """

    def __init__(self, model: Path | bytes, *, num_threads: int) -> None:
        self._num_threads = num_threads
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="network")
        source = model if isinstance(model, bytes) else str(model)
        # Fewer images than threads share the layers instead. This costs the weights once more.
        self._one_thread, self._all_threads = (
            _session(source, num_threads=num) for num in (1, num_threads)
        )

    def __call__(self, images: Tensor) -> Tensor:
        """Return the last feature map ``(N, K, h, w)`` of ``(N, 3, H, W)`` float32 images."""
        pixels = images.contiguous().numpy()
        if len(pixels) < self._num_threads:
            return torch.from_numpy(_run(self._all_threads, pixels))
        images_in_pass = max(1, PIXELS_IN_PASS // math.prod(pixels.shape[2:]))
        num_passes = max(self._num_threads, math.ceil(len(pixels) / images_in_pass))
        passes = np.array_split(pixels, num_passes)
        feature_maps = self._threads.map(partial(_run, self._one_thread), passes)
        return torch.from_numpy(np.concatenate(list(feature_maps)))


def _session(source: str | bytes, *, num_threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    # Waiting threads that spin would take CPU time from other processes on the machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def _run(session: onnxruntime.InferenceSession, pixels: FloatArray) -> FloatArray:
    feature_map: FloatArray
    (feature_map,) = session.run([_OUTPUT], {_INPUT: pixels})
    return feature_map
