"""The deployable bundle: weights (safetensors), a manifest and the files it lists.

Loading never unpickles. It checks every file against its hash, the manifest against its version,
and the contract against the scores it rests on. `verify_bundle` also checks the network against
recorded outputs. Knows nothing of serving.
"""

import dataclasses
import hashlib
import io
import math
import platform
import warnings
from pathlib import Path

import pandas as pd
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

import melanoma
from melanoma.bundle.backend import OnnxFeatures
from melanoma.bundle.manifest import (
    CALIBRATION,
    FEATURES,
    KNOWN_IMAGES,
    MANIFEST,
    MAX_BYTES,
    MODEL_CARD,
    ONNX_RUNTIME,
    WEIGHTS,
    BundleManifest,
    manifest_bytes,
    parse_manifest,
)
from melanoma.bundle.probes import record_probes, replay_probes
from melanoma.errors import BundleError, DataError, SettingError
from melanoma.evidence.contract import SEVERAL_IMAGES, unit_of
from melanoma.evidence.operating_point import OperatingPoint, Promise, select_operating_point
from melanoma.explain.subject import Subject
from melanoma.imaging.preprocess import Preprocess
from melanoma.io.cache import local_folder
from melanoma.io.files import new_folder, sha256_of, write_bytes, write_json, write_text
from melanoma.io.storage import AnyPath, to_path
from melanoma.io.typed import to_plain
from melanoma.task import Task
from melanoma.training.embedded import NO_IMAGES
from melanoma.training.ensemble import build_networks


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A verified bundle in memory.

    Attributes:
        manifest: the manifest.
        model: the network in eval mode, on the CPU.
        features_onnx: the ONNX file that computes the feature maps on a CPU, or None if torch
            computes them.
        model_card: the text of MODEL_CARD.md.
        known_images: the content of the file that recognises the images it was made from.
    """

    manifest: BundleManifest
    model: nn.Module
    features_onnx: Path | None
    model_card: str
    known_images: bytes

    @property
    def task(self) -> Task:
        """The classes and which of them are targets."""
        return self.manifest.task

    @property
    def preprocess(self) -> Preprocess:
        """The steps from stored images to the network's input."""
        return self.manifest.preprocessing

    def check_takes_images(self) -> None:
        """Raise SettingError if the bundle judges embeddings instead."""
        if self.manifest.architecture.embedding_size:
            raise SettingError(NO_IMAGES)

    def subject(self, device: str = "cpu") -> Subject:
        """Return the network as explainers take it."""
        manifest = self.manifest
        return Subject(
            self.model,
            manifest.preprocessing,
            manifest.tta,
            manifest.task.target_indices,
            torch.device(device),
        )

    @property
    def operating_point(self) -> OperatingPoint:
        """The threshold and the contract."""
        return self.manifest.operating_point


@dataclasses.dataclass(frozen=True)
class Extras:
    """What a bundle holds besides its network and its manifest.

    Attributes:
        calibration_rows: columns label, score and num_images, one row for each unit that a contract
            rests on; without ids.
        features_onnx: the exported network if ONNX Runtime computes its features, else None.
        model_card: the text of MODEL_CARD.md.
        known_images: hashes of the images it was trained and calibrated on.
    """

    calibration_rows: pd.DataFrame
    features_onnx: bytes | None
    model_card: str
    known_images: bytes


def save_bundle(
    folder: AnyPath, draft: BundleManifest, model: nn.Module, extras: Extras
) -> BundleManifest:
    """Write a bundle folder atomically, replacing an older bundle if there is one.

    Args:
        folder: the folder of the bundle.
        draft: the manifest without files, probes and version, which are filled in here.
        model: the trained network, on the CPU.
        extras: the bundle's other files.

    Returns:
        The complete manifest.
    """
    with new_folder(folder, replace_if=MANIFEST) as work:
        return write_bundle(work, draft, model, extras)


def write_bundle(
    work: Path, draft: BundleManifest, model: nn.Module, extras: Extras
) -> BundleManifest:
    """Write the files of a bundle into a folder of this node; arguments as in `save_bundle`."""
    write_bytes(work / WEIGHTS, weights_of(model))
    columns = ["label", "score", "num_images"]
    rows = extras.calibration_rows[columns].sort_values(columns)
    rows.to_parquet(work / CALIBRATION, index=False)
    write_text(work / MODEL_CARD, extras.model_card)
    write_bytes(work / KNOWN_IMAGES, extras.known_images)
    if extras.features_onnx is not None:
        write_bytes(work / FEATURES, extras.features_onnx)
    manifest = dataclasses.replace(
        draft,
        files={path.name: sha256_of(path) for path in sorted(work.iterdir())},
        probes=record_probes(model, draft.preprocessing, draft.tta),
    ).with_version()
    write_json(work / MANIFEST, to_plain(manifest))
    return manifest


def weights_of(model: nn.Module) -> bytes:
    """Return the content of the weights file of a network."""
    return save_tensors({k: v.contiguous() for k, v in model.state_dict().items()})


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries on which a network's outputs depend."""
    return {
        "melanoma": melanoma.__version__,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
    }


def fetch_bundle(folder: AnyPath, *, manifest_sha256: str | None = None) -> Path:
    """Return a bundle's folder on this node, fetching it from object storage if needed.

    Args:
        folder: the bundle's folder; each node fetches it once.
        manifest_sha256: the pinned hash of the manifest, compared before any other file is fetched;
            None accepts any manifest.

    Raises:
        BundleError: if the manifest is missing, damaged or not the pinned one, or if a file does
            not match the manifest.
    """
    return _fetch(folder, manifest_sha256)[0]


def _fetch(folder: AnyPath, manifest_sha256: str | None) -> tuple[Path, BundleManifest]:
    try:
        data = manifest_bytes(folder)
        if manifest_sha256 is not None and hashlib.sha256(data).hexdigest() != manifest_sha256:
            raise BundleError(
                "The bundle's manifest must match the pinned manifest_sha256; it does not. Update"
                " the pin, or use the bundle that it names."
            )
        manifest = parse_manifest(data)
        if isinstance(folder, Path):
            return folder, manifest
        files = {name: (sha256, MAX_BYTES[name]) for name, sha256 in manifest.files.items()}
        return local_folder(folder, (MANIFEST, data), files), manifest
    except (DataError, FileNotFoundError) as error:
        raise BundleError(str(error)) from error


def load_bundle(path: str | AnyPath, *, manifest_sha256: str | None = None) -> Bundle:
    """Load a bundle; check every file against its hash and the contract against its scores.

    Example:
        >>> bundle = load_bundle(bundle_dir)
        >>> bundle.task.targets, bundle.operating_point.contract.status
        (('mel',), 'met')

    Args:
        path: the bundle's folder; each node fetches one in object storage once.
        manifest_sha256: the pinned hash of the manifest; None accepts any manifest.

    Raises:
        BundleError: if a file is missing, changed or of another format, or if the files do not fit
            together.
    """
    folder, manifest = _fetch(to_path(path), manifest_sha256)
    content = {
        name: _content(folder, name, manifest)
        for name in (WEIGHTS, CALIBRATION, MODEL_CARD, KNOWN_IMAGES)
    }
    has_onnx = manifest.cpu_backend.name == ONNX_RUNTIME
    if has_onnx:
        _content(folder, FEATURES, manifest)  # only checked: ONNX Runtime maps the file by its path
    _warn_of_versions(manifest)
    try:
        model = build_networks(
            manifest.architecture, manifest.task.num_classes, num=manifest.num_networks
        )
        model.load_state_dict(load_tensors(content[WEIGHTS]))
        model.eval().requires_grad_(False)
        follows = _contract_follows(manifest, content[CALIBRATION])
    except (RuntimeError, SafetensorError) as error:
        raise BundleError(
            f"{WEIGHTS} must fit the architecture {manifest.architecture.backbone}; it does not."
            " Take the bundle from its source again."
        ) from error
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise BundleError(
            f"The bundle must be complete and consistent; it is not ({error}). Take the bundle from"
            " its source again."
        ) from error
    if not follows:
        raise BundleError(
            f"The contract must follow from {CALIBRATION}; it does not, so one of them was changed."
            " Take the bundle from its source again."
        )
    return Bundle(
        manifest,
        model.to(memory_format=torch.channels_last),
        folder / FEATURES if has_onnx else None,
        content[MODEL_CARD].decode(),
        content[KNOWN_IMAGES],
    )


def _warn_of_versions(manifest: BundleManifest) -> None:
    here = library_versions()
    others = [
        f"{name} {made} (here {here.get(name)})"
        for name, made in manifest.versions.items()
        if made != here.get(name)
    ]
    if others:
        warnings.warn(
            f"The bundle was made with {', '.join(others)}. Run `melanoma bundle verify` to check"
            " that it computes the same here.",
            stacklevel=3,
        )


def _content(folder: Path, name: str, manifest: BundleManifest) -> bytes:
    """Return the verified content of a file, read once so that what is checked is what is used."""
    if name not in manifest.files or not (folder / name).is_file():
        raise BundleError(
            f"The bundle must hold {name}; it is missing. Take the bundle from its source again."
        )
    data = (folder / name).read_bytes()
    if hashlib.sha256(data).hexdigest() != manifest.files[name]:
        raise BundleError(
            f"{name} must match its sha256 in the manifest; it was changed. Take the bundle from"
            " its source again."
        )
    return data


def verify_bundle(folder: AnyPath) -> list[str]:
    """Run every check on a bundle, its contract and recorded outputs included.

    Returns:
        One sentence for each reason not to serve it; empty if it may be served.
    """
    try:
        bundle = load_bundle(folder)
    except BundleError as error:
        return [str(error)]
    findings = []
    contract = bundle.operating_point.contract
    if contract.status != "met":
        sentence = contract.sentence(bundle.task)
        findings.append(
            f"The sensitivity contract must be met; it is {contract.status}. {sentence}"
        )
    probes, tta = bundle.manifest.probes, bundle.manifest.tta
    findings += replay_probes(probes, bundle.model, bundle.preprocess, tta)
    if bundle.features_onnx is not None:
        extract = OnnxFeatures(bundle.features_onnx, num_threads=torch.get_num_threads())
        findings += replay_probes(probes, bundle.model, bundle.preprocess, tta, extract=extract)
    return findings


def _contract_follows(manifest: BundleManifest, calibration: bytes) -> bool:
    """Return whether the scores give the recorded thresholds and contracts when recomputed."""
    rows = pd.read_parquet(io.BytesIO(calibration))
    alone, several = rows[rows["num_images"] == 1], rows[rows["num_images"] > 1]
    if (manifest.several_images is None) != several.empty:
        return False
    pairs = [(manifest.operating_point, alone, unit_of(manifest.group_columns))]
    if manifest.several_images is not None:
        pairs.append((manifest.several_images, several, SEVERAL_IMAGES))
    return all(_follows(point, units, unit, manifest) for point, units, unit in pairs)


def _follows(
    recorded: OperatingPoint, rows: pd.DataFrame, unit: str, manifest: BundleManifest
) -> bool:
    contract, is_target = recorded.contract, rows["label"].isin(manifest.task.targets)
    promise = Promise(
        contract.targets,
        contract.target_sensitivity,
        manifest.hardest_reference,
        unit,
        contract.population,
        access=contract.access,
        accesses_declared=contract.accesses_declared,
        basis=contract.basis,
        num_target_unassessed=contract.num_target_unassessed,
        target_share=contract.target_share,
        confidence=contract.confidence,
    )
    again = select_operating_point(
        rows.loc[is_target, "score"].to_numpy(), rows.loc[~is_target, "score"].to_numpy(), promise
    )
    pairs = zip(dataclasses.astuple(again.contract), dataclasses.astuple(contract), strict=True)
    return math.isclose(again.threshold, recorded.threshold, abs_tol=1e-12) and all(
        math.isclose(ours, theirs, abs_tol=1e-9) if isinstance(ours, float) else ours == theirs
        for ours, theirs in pairs
    )
