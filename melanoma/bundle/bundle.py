"""The deployable: weights (safetensors) and a manifest. Loading verifies and never unpickles; knows nothing of serving.

Nothing is taken on trust that can be checked: every file against its hash, the manifest against its schema and version, the
contract against the scores it rests on, and on `verify` the network against recorded outputs.
"""

import dataclasses
import hashlib
import io
import json
import math
import platform
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

import melanoma
from melanoma.bundle.backend import OnnxFeatures
from melanoma.bundle.drift import FeatureReference
from melanoma.bundle.probes import record_probes, replay_probes
from melanoma.config import CLASSES, DataConfig, ModelConfig, TrainConfig
from melanoma.errors import BundleError, DataError
from melanoma.evidence.calibration import Calibrator
from melanoma.evidence.operating_point import OperatingPoint, select_operating_point
from melanoma.imaging.letterbox import Preprocess
from melanoma.io.cache import local_folder
from melanoma.io.files import new_folder, sha256_of, write_bytes, write_json, write_text
from melanoma.io.storage import AnyPath, is_sha256
from melanoma.training.networks import build_model

FORMAT_VERSION = 1
WEIGHTS, MANIFEST, CALIBRATION, MODEL_CARD, FEATURES = (
    "model.safetensors",
    "manifest.json",
    "calibration.parquet",
    "MODEL_CARD.md",
    "features.onnx",
)
ONNX_RUNTIME, TORCH = "onnxruntime", "torch"
_MAX_MANIFEST_BYTES = 64 * 2**20
_MAX_BYTES = {WEIGHTS: 4 * 2**30, CALIBRATION: 2**30, MODEL_CARD: 2**20, FEATURES: 4 * 2**30}
"""Every file that a bundle may hold beside its manifest, and the most that is fetched of each."""
_FIELDS = {
    "kind", "format_version", "name", "version", "classes", "architecture", "preprocessing", "calibration", "operating_point",
    "features", "cpu_backend", "group_columns", "split_hash", "training_config", "versions", "files", "probes",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A verified bundle in memory.

    Attributes:
        manifest: as written.
        model: the network in eval mode, on the CPU.
        preprocess: from stored images to its input.
        tta: mirrored copies averaged.
        calibrator: from logits to probabilities.
        operating_point: threshold and contract.
        features: of the validation images, to measure how far served ones drift.
        features_onnx: the file that gives the network's feature maps on a CPU, or None where torch does.
        model_card: MODEL_CARD.md.
    """

    manifest: dict[str, Any]
    model: nn.Module
    preprocess: Preprocess
    tta: int
    calibrator: Calibrator
    operating_point: OperatingPoint
    features: FeatureReference
    features_onnx: Path | None
    model_card: str

    @property
    def weights_sha256(self) -> str:
        """The hash of the weights file."""
        return str(self.manifest["files"][WEIGHTS])

    @property
    def version(self) -> str:
        """The bundle's version: changes with weights, calibrator or operating point."""
        return str(self.manifest["version"])


@dataclasses.dataclass(frozen=True)
class BundleParts:
    """What a finished training run hands over to be packed.

    Attributes:
        model: the trained network, on the CPU.
        config: the run's settings.
        stored_shape: (H, W) of stored images, px.
        calibrator: fitted on the validation fold.
        operating_point: selected on the calibration split.
        features: of the validation fold.
        cpu_backend: what computes feature maps on a CPU, and how it was found to differ from torch.
        features_onnx: the exported network, if that is ONNX Runtime.
        calibration_rows: columns label and score, one row a unit the contract rests on; no ids.
        group_columns: what was never split.
        split_hash: of the data set's splits.
        model_card: text for people.
    """

    model: nn.Module
    config: TrainConfig
    stored_shape: tuple[int, int]
    calibrator: Calibrator
    operating_point: OperatingPoint
    features: FeatureReference
    cpu_backend: dict[str, Any]
    features_onnx: bytes | None
    calibration_rows: pd.DataFrame
    group_columns: tuple[str, ...]
    split_hash: str
    model_card: str


def save_bundle(parts: BundleParts, folder: AnyPath) -> None:
    """Write a bundle folder atomically, in place of an older bundle."""
    preprocess = Preprocess(parts.stored_shape, parts.config.data)
    with new_folder(folder, replace_if=MANIFEST) as work:
        write_bytes(work / WEIGHTS, save_tensors({k: v.contiguous() for k, v in parts.model.state_dict().items()}))
        parts.calibration_rows[["label", "score"]].sort_values(["label", "score"]).to_parquet(
            work / CALIBRATION, index=False
        )
        write_text(work / MODEL_CARD, parts.model_card)
        if parts.features_onnx is not None:
            write_bytes(work / FEATURES, parts.features_onnx)
        files = {path.name: sha256_of(path) for path in sorted(work.iterdir())}
        manifest: dict[str, Any] = {
            "kind": "melanoma-bundle",
            "format_version": FORMAT_VERSION,
            "name": "melanoma",
            "classes": list(CLASSES),
            "architecture": dataclasses.asdict(parts.config.model),
            "preprocessing": {**dataclasses.asdict(parts.config.data), "stored_shape": list(parts.stored_shape)},
            "calibration": parts.calibrator.as_dict(),
            "operating_point": parts.operating_point.as_dict(),
            "features": parts.features.as_dict(),
            "cpu_backend": parts.cpu_backend,
            "group_columns": list(parts.group_columns),
            "split_hash": parts.split_hash,
            "training_config": dataclasses.asdict(parts.config),
            "versions": _versions(),
            "files": files,
            "probes": record_probes(parts.model, preprocess, parts.config.data.tta),
        }
        manifest["version"] = version_of(manifest)
        write_json(work / MANIFEST, manifest)


def version_of(manifest: dict[str, Any]) -> str:
    """Return a short name that changes with anything the manifest says; it also shows a later change of any word of it."""
    content = {key: value for key, value in manifest.items() if key != "version"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _versions() -> dict[str, str]:
    return {
        "melanoma": melanoma.__version__,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
    }


def read_manifest(folder: AnyPath) -> dict[str, Any]:
    """Read and check a bundle's manifest.

    Raises:
        BundleError: if it is missing, no JSON, incomplete, or of another format version or class list.
    """
    return _parse_manifest(_manifest_bytes(folder))


def _manifest_bytes(folder: AnyPath) -> bytes:
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleError(f"BUNDLE must be a folder that `train` wrote, OUT/RUN/bundle; {folder} has no {MANIFEST}.")
    with path.open("rb") as file:
        data = bytes(file.read(_MAX_MANIFEST_BYTES + 1))
    if len(data) > _MAX_MANIFEST_BYTES:
        raise BundleError(f"the bundle's {MANIFEST} must have at most {_MAX_MANIFEST_BYTES} bytes, it has more.")
    return data


def _parse_manifest(data: bytes) -> dict[str, Any]:
    try:
        manifest = json.loads(data)
    except ValueError as error:  # no JSON, or no UTF-8
        raise BundleError(
            f"the bundle's {MANIFEST} must be JSON, it is damaged; take the bundle from its source again."
        ) from error
    if not isinstance(manifest, dict) or manifest.get("kind") != "melanoma-bundle":
        raise BundleError(f"the bundle's {MANIFEST} must describe a melanoma bundle, it describes something else.")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise BundleError(
            f"the bundle's format version must be {FORMAT_VERSION}, got {manifest.get('format_version')!r}; use the release that wrote it."
        )
    missing = sorted(_FIELDS - set(manifest))
    if missing:
        raise BundleError(
            f"the bundle's manifest must have the field {missing[0]}, it is missing; take the bundle from its source again."
        )
    if manifest["classes"] != list(CLASSES):
        raise BundleError(
            f"the bundle's classes must be {', '.join(CLASSES)}, got {', '.join(map(str, manifest['classes']))}."
        )
    if manifest["version"] != version_of(manifest):
        raise BundleError(
            "the bundle's version must match its manifest, it does not; the manifest was changed after it was written."
        )
    files = manifest["files"]
    if not isinstance(files, dict) or not files.keys() <= _MAX_BYTES.keys() or not all(map(is_sha256, files.values())):
        raise BundleError(
            f"the bundle's manifest must list {', '.join(_MAX_BYTES)} with their sha256 and nothing else, it lists something else."
        )
    return manifest


def fetch_bundle(folder: AnyPath, *, manifest_sha256: str | None = None) -> Path:
    """Return a bundle's folder on this node; from object storage its manifest is read first, and then the files it names.

    Args:
        folder: the bundle's folder; each node fetches it once.
        manifest_sha256: of the only manifest that will do; compared before anything else is fetched.

    Raises:
        BundleError: if the manifest is missing, damaged or not the pinned one, or a file does not match it.
    """
    return _fetch(folder, manifest_sha256)[0]


def _fetch(folder: AnyPath, manifest_sha256: str | None) -> tuple[Path, dict[str, Any]]:
    try:
        data = _manifest_bytes(folder)
        if manifest_sha256 is not None and hashlib.sha256(data).hexdigest() != manifest_sha256:
            raise BundleError(
                "the bundle must be the one whose manifest_sha256 is pinned, it is another; change the pin or the bundle."
            )
        manifest = _parse_manifest(data)
        if isinstance(folder, Path):
            return folder, manifest
        files = {name: (sha256, _MAX_BYTES[name]) for name, sha256 in manifest["files"].items()}
        return local_folder(folder, (MANIFEST, data), files), manifest
    except (DataError, FileNotFoundError) as error:
        raise BundleError(str(error)) from error


def load_bundle(place: AnyPath, *, manifest_sha256: str | None = None) -> Bundle:
    """Load a bundle, checking every file against its hash and the contract against its scores.

    Args:
        place: the bundle's folder; from object storage each node fetches it once.
        manifest_sha256: of the only manifest that will do; None takes any.

    Raises:
        BundleError: if anything is missing, changed, of another format, or does not fit together; one sentence says what.
    """
    folder, manifest = _fetch(place, manifest_sha256)
    try:
        return _load(folder, manifest)
    except BundleError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise BundleError(f"the bundle's manifest must be complete and consistent, it is not ({error}).") from error


def _load(folder: Path, manifest: dict[str, Any]) -> Bundle:
    has_onnx = manifest["cpu_backend"]["name"] == ONNX_RUNTIME
    content = {name: _content(folder, name, manifest) for name in (WEIGHTS, CALIBRATION, MODEL_CARD)}
    if has_onnx:
        _content(folder, FEATURES, manifest)  # loaded by its path later: ONNX Runtime maps it
    here = _versions()
    others = [
        f"{name} {made} (here {here.get(name)})"
        for name, made in manifest["versions"].items()
        if made != here.get(name)
    ]
    if others:
        warnings.warn(
            f"the bundle was made with {', '.join(others)}; `melanoma bundle verify` says whether it computes the same here.",
            stacklevel=3,
        )
    settings = dict(manifest["preprocessing"])
    stored_shape = tuple(int(side) for side in settings.pop("stored_shape"))
    data = DataConfig.from_dict(settings)
    model = build_model(ModelConfig.from_dict(manifest["architecture"]))
    try:
        model.load_state_dict(load_tensors(content[WEIGHTS]))
    except (RuntimeError, SafetensorError) as error:
        raise BundleError(
            f"{WEIGHTS} must fit the architecture {manifest['architecture']['backbone']}, it does not."
        ) from error
    model.eval().requires_grad_(False)
    bundle = Bundle(
        manifest=manifest,
        model=model.to(memory_format=torch.channels_last),
        preprocess=Preprocess((stored_shape[0], stored_shape[1]), data),
        tta=data.tta,
        calibrator=Calibrator.from_dict(manifest["calibration"]),
        operating_point=OperatingPoint.from_dict(manifest["operating_point"]),
        features=FeatureReference.from_dict(manifest["features"]),
        features_onnx=folder / FEATURES if has_onnx else None,
        model_card=content[MODEL_CARD].decode(),
    )
    if not _contract_follows(bundle.operating_point, content[CALIBRATION]):
        raise BundleError(
            f"the contract must follow from {CALIBRATION}, it does not; it was changed after it was made."
        )
    return bundle


def _content(folder: Path, name: str, manifest: dict[str, Any]) -> bytes:
    """Return a file's content, read once: what is checked is what is used."""
    if name not in manifest["files"] or not (folder / name).is_file():
        raise BundleError(f"the bundle must hold {name}, it is missing; take the bundle from its source again.")
    data = (folder / name).read_bytes()
    if hashlib.sha256(data).hexdigest() != manifest["files"][name]:
        raise BundleError(
            f"{name} must match its sha256 in the manifest, it was changed; take the bundle from its source again."
        )
    return data


def verify_bundle(folder: AnyPath) -> list[str]:
    """Check all that can be checked of a bundle; return a sentence for each reason not to serve it, none if it may be served."""
    try:
        bundle = load_bundle(folder)
    except BundleError as error:
        return [str(error)]
    findings = []
    contract = bundle.operating_point.contract
    if contract.status != "met":
        findings.append(f"the sensitivity contract must be met, it is {contract.status}: {contract.sentence()}")
    probes = bundle.manifest["probes"]
    findings += replay_probes(probes, bundle.model, bundle.preprocess, bundle.tta)
    if bundle.features_onnx is not None:
        extract = OnnxFeatures(bundle.features_onnx, num_threads=torch.get_num_threads())
        findings += replay_probes(probes, bundle.model, bundle.preprocess, bundle.tta, extract=extract)
    return findings


def _contract_follows(recorded: OperatingPoint, calibration: bytes) -> bool:
    """Recompute threshold and contract from the scores they rest on."""
    rows, contract = pd.read_parquet(io.BytesIO(calibration)), recorded.contract
    is_melanoma = rows["label"] == "mel"
    again = select_operating_point(
        rows.loc[is_melanoma, "score"].to_numpy(),
        rows.loc[~is_melanoma, "score"].to_numpy(),
        target_sensitivity=contract.target_sensitivity,
        min_specificity=contract.min_specificity,
        population=contract.population,
        basis=contract.basis,
        confidence=contract.confidence,
    )
    pairs = zip(dataclasses.astuple(again.contract), dataclasses.astuple(contract), strict=True)
    return math.isclose(again.threshold, recorded.threshold, abs_tol=1e-12) and all(
        math.isclose(ours, theirs, abs_tol=1e-9) if isinstance(ours, float) else ours == theirs
        for ours, theirs in pairs
    )
