"""Start weights from a file.

Training scripts save networks wrapped in other objects, with prefixed names, or under the names of
another release. Knows nothing of runs or data.
"""

import dataclasses
import io
import sys
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from melanoma.errors import SettingError
from melanoma.io.storage import AnyPath

_HOLDERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "net",
    "network",
    "weights",
    "params",
    "state_dict_ema",
    "model_ema",
)
"""Keys under which the checkpoints of training scripts keep the network."""
_COMPILED = "_orig_mod."
_COUNTER = ".num_batches_tracked"
"""The counters of batch norms, which no output depends on. Many files lack them."""
_LEAST_SHARE = 0.5
"""The smallest share of tensors that must match; with fewer, most weights would stay random."""


@dataclasses.dataclass(frozen=True)
class WeightsReport:
    """Which tensors of a file fitted the network.

    Attributes:
        matched: names of the tensors that were loaded.
        missing: names of the network's tensors that the file lacks, without counters of batches.
        unused: names of the file's tensors that were not loaded.
    """

    matched: list[str]
    missing: list[str]
    unused: list[str]

    def __str__(self) -> str:
        shown = (
            "; not in the file:"
            f" {', '.join(self.missing[:4])}{' ...' if len(self.missing) > 4 else ''}"
            if self.missing
            else ""
        )
        return (
            f"{len(self.matched)} tensors matched, {len(self.missing)} kept their start values,"
            f" {len(self.unused)} were not used{shown}"
        )


def load_weights(model: nn.Module, path: AnyPath) -> WeightsReport:
    """Load the tensors of a state dict whose names and shapes match those of the network.

    Removes the prefixes of wrappers (``module.``, ``_orig_mod.``, ``model.backbone.``), and
    translates the names of other releases as timm does.

    Args:
        model: the network, changed in place.
        path: a .safetensors file, or a torch file that holds only tensors.

    Raises:
        SettingError: if the file is missing, holds anything but tensors, or has less than half of
            the network's tensors.
    """
    if not path.is_file():
        raise SettingError(
            f"--weights must be none, imagenet or a file; {path} is not a file. Check the path."
        )
    file, own = read_state_dict(path), model.state_dict()
    given = max(_readings(file, model), key=lambda reading: len(_matching(reading, own)))
    matched = _matching(given, own)
    if len(matched) < _LEAST_SHARE * len(own):
        raise SettingError(
            _misfit(path.name, type(model).__name__, file=file, given=given, own=own)
        )
    model.load_state_dict(matched, strict=False)
    missing = {name for name in set(own) - set(matched) if not name.endswith(_COUNTER)}
    return WeightsReport(sorted(matched), sorted(missing), sorted(set(given) - set(matched)))


def _matching(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: value
        for name, value in given.items()
        if name in own and value.shape == own[name].shape
    }


def _readings(given: dict[str, Tensor], model: nn.Module) -> list[dict[str, Tensor]]:
    """Return the tensors of a file under every set of names that might fit the network."""
    plain = {name.replace(_COMPILED, ""): value for name, value in given.items()}
    own = model.state_dict()
    prefixes = _prefixes(plain)
    # A file can hold several networks, such as a student and its teacher. The prefix with the most
    # names of this network comes first.
    stripped = [
        {
            name.removeprefix(prefix): value
            for name, value in plain.items()
            if name.startswith(prefix)
        }
        for prefix in prefixes
    ]
    stripped.sort(key=lambda reading: len(set(reading) & set(own)), reverse=True)
    return [reading for names in stripped for reading in (names, _translated(names, model))]


def _prefixes(given: Mapping[str, Tensor]) -> list[str]:
    """Return the prefixes, each ending in a dot, that at least a tenth of the names share.

    The empty prefix comes first.
    """
    counts: Counter[str] = Counter()
    for name in given:
        parts = name.split(".")
        counts.update(".".join(parts[:num]) + "." for num in range(1, len(parts)))
    return ["", *(prefix for prefix, num in counts.items() if num * 10 >= len(given))]


def _translated(given: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors under timm's names, or none if timm cannot translate them.

    timm's module of a network may know the names of other releases, such as Meta's for ConvNeXt.
    """
    translate = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if translate is None:
        return {}
    try:
        return {str(name): value for name, value in translate(dict(given), model).items()}
    # timm's filter expects one layout and does not check it, so another layout fails in any way.
    except (KeyError, AttributeError, RuntimeError, TypeError, IndexError):
        return {}


def _misfit(
    file_name: str,
    network: str,
    *,
    file: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
) -> str:
    """Return why tensors do not fit: another size of the network, or other names."""
    other_shape = [name for name in given if name in own and given[name].shape != own[name].shape]
    num = len(_matching(given, own))
    message = (
        f"--weights must fit {network}; {num or 'no'} tensor{'s' if num > 1 else ''} of {file_name}"
        f" {'match' if num > 1 else 'matches'} the name and shape of "
    )
    message += f"its {len(own)} tensors. "
    if len(other_shape) > num:
        name = other_shape[0]
        return (
            f"{message}{name} is {tuple(given[name].shape)} there and {tuple(own[name].shape)}"
            " here: the file is for another size of this network. Set model.backbone to that size"
            " or pass another file."
        )
    theirs = next((name for name in file if name not in own), next(iter(file)))
    return (
        f"{message}The file has {theirs}; the network has {next(iter(own))}. Pass weights of"
        " model.backbone."
    )


def read_state_dict(path: AnyPath) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors file, or of a torch file that holds only tensors.

    Raises:
        SettingError: if the file is damaged or holds anything but tensors.
    """
    if path.suffix == ".safetensors":
        try:
            return load_tensors(path.read_bytes())
        except SafetensorError as error:
            raise SettingError(
                f"--weights must be a whole safetensors file; {path.name} is not ({error}). Copy or"
                " download it again."
            ) from error
    try:
        loaded = torch.load(io.BytesIO(path.read_bytes()), map_location="cpu", weights_only=True)
    except Exception as error:  # torch has no common base class for damaged and unsafe files
        raise SettingError(
            f"--weights must be safetensors or a tensors-only torch file; {path.name} is neither."
            " When writing the file, save model.state_dict()."
        ) from error
    tensors = _tensors_in(loaded)
    if not tensors:
        raise SettingError(
            f"--weights must hold named tensors; {path.name} holds none. Pass a state dict."
        )
    return tensors


def _tensors_in(loaded: Any) -> dict[str, Tensor]:
    """Return the named tensors of a network, at any depth of a checkpoint."""
    if not isinstance(loaded, Mapping):
        return {}
    for name in _HOLDERS:
        if tensors := _tensors_in(loaded.get(name)):
            return tensors
    return {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}
