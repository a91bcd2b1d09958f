"""The manifest of a bundle: `manifest.json` as a dataclass, and its one reader."""

import dataclasses
import hashlib
import json
from typing import Any, Literal

from melanoma.bundle.drift import FeatureReference
from melanoma.bundle.probes import Probe
from melanoma.bundle.usual_images import UsualImages
from melanoma.config import ModelConfig, TrainConfig
from melanoma.errors import BundleError
from melanoma.evidence.calibration import Calibrator
from melanoma.evidence.operating_point import OperatingPoint
from melanoma.evidence.reference_models import Comparison, hardest
from melanoma.explain.claims import Claim
from melanoma.imaging.preprocess import Preprocess
from melanoma.io.storage import AnyPath, is_sha256
from melanoma.io.typed import Strict, from_json, to_plain
from melanoma.places import MANIFEST as MANIFEST
from melanoma.places import check_bundle
from melanoma.task import Task

KIND, FORMAT_VERSION = "melanoma-bundle", 6
WEIGHTS, CALIBRATION, MODEL_CARD, FEATURES, KNOWN_IMAGES = (
    "model.safetensors", "calibration.parquet", "MODEL_CARD.md", "features.onnx",
    "known_images.parquet",
)  # fmt: skip
ONNX_RUNTIME: Literal["onnxruntime"] = "onnxruntime"
TORCH: Literal["torch"] = "torch"
MAX_BYTES = {
    WEIGHTS: 4 * 2**30,
    CALIBRATION: 2**30,
    MODEL_CARD: 2**20,
    FEATURES: 4 * 2**30,
    KNOWN_IMAGES: 2**30,
}
"""Every file that a bundle may hold besides its manifest, and its largest size, bytes."""
MAX_NETWORKS = 64
_MAX_MANIFEST_BYTES = 64 * 2**20
_REMEDY = "Take the bundle from its source again."


@dataclasses.dataclass(frozen=True)
class CpuBackend(Strict):
    """The library that computes feature maps on a CPU.

    ONNX Runtime and torch were compared on the calibration images; the counts are the result.

    Attributes:
        name: onnxruntime or torch.
        num_images: number of images compared; 0 if the network cannot be exported.
        max_probability_difference: the largest difference of any class, in [0, 1].
        num_other_decisions: number of images whose decision differs.
    """

    name: Literal["onnxruntime", "torch"]
    num_images: int = 0
    max_probability_difference: float = 0.0
    num_other_decisions: int = 0


@dataclasses.dataclass(frozen=True)
class Origin(Strict):
    """The bundle whose network another one has, with a contract of its own.

    Attributes:
        version: of that bundle.
        population: on which the network was trained.
        split_hash: of those data.
        operating_point: the threshold and the contract there.
    """

    version: str
    population: str
    split_hash: str
    operating_point: OperatingPoint


@dataclasses.dataclass(frozen=True)
class BundleManifest(Strict):
    """The content of ``manifest.json``.

    Attributes:
        task: the classes and which of them are targets.
        architecture: the network.
        preprocessing: from stored images to the network's input.
        calibrator: from logits to probabilities.
        operating_point: threshold and contract.
        several_images: threshold and contract for several images of one lesion, whose logits are
            averaged; None if no lesion of the calibration split with a target has several.
        reference_models: the network beside models that see no image, on the validation fold.
        features: statistics of the validation images, to measure the drift of served images.
        usual_images: which images are assessed; others get cannot_assess.
        cpu_backend: the library that computes feature maps on a CPU.
        group_columns: columns of the metadata; images that share a value were kept in one split.
        split_hash: sha256 of the data set's splits.
        training_config: the settings of the run.
        best_epochs: the epoch that was chosen, from 1, for each network of an ensemble, or for the
            one network.
        validation: the scores that chose it; of an ensemble, those of every network on the fold
            that it was trained without.
        teacher_sha256: hash of the table of a teacher from which the network learned besides the
            labels; empty if there was none.
        versions: the versions of the libraries that wrote the bundle.
        origin: the bundle from which the network was taken, if `recontract` wrote this one. All
            that follows from data is then of the data of the new contract.
        lesion_claims: for each kind of heatmap, whether a scorecard supports that it marks lesions.
        files: name -> sha256 of every other file.
        probes: synthetic images with the network's outputs.
        version: a short hash of all other fields.
        name: the name of the model, as clients request it.
        kind: marks the file as a bundle's manifest.
        format_version: the version of this format.
    """

    task: Task
    architecture: ModelConfig
    preprocessing: Preprocess
    calibrator: Calibrator
    operating_point: OperatingPoint
    reference_models: tuple[Comparison, ...]
    features: FeatureReference
    usual_images: UsualImages
    cpu_backend: CpuBackend
    group_columns: tuple[str, ...]
    split_hash: str
    training_config: TrainConfig
    best_epochs: tuple[int, ...]
    validation: dict[str, float]
    versions: dict[str, str]
    several_images: OperatingPoint | None = None
    teacher_sha256: str = ""
    origin: Origin | None = None
    lesion_claims: dict[str, Claim] = dataclasses.field(default_factory=dict)
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    probes: tuple[Probe, ...] = ()
    version: str = ""
    name: str = "melanoma"
    kind: Literal["melanoma-bundle"] = "melanoma-bundle"
    format_version: Literal[6] = 6

    @property
    def hardest_reference(self) -> Comparison:
        """The comparison in which the network leads least; it decides the contract."""
        return hardest(self.reference_models)

    @property
    def weights_sha256(self) -> str:
        """The hash of the weights file."""
        return self.files[WEIGHTS]

    @property
    def num_networks(self) -> int:
        """Number of networks whose logits are averaged."""
        return len(self.best_epochs)

    @property
    def tta(self) -> int:
        """Number of mirrored copies averaged at prediction."""
        return self.preprocessing.data.tta

    def with_version(self) -> "BundleManifest":
        """Return the manifest with the version that follows from all its other fields."""
        return dataclasses.replace(self, version=_version_of(to_plain(self)))


def _version_of(values: dict[str, Any]) -> str:
    content = json.dumps({**values, "version": ""}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def read_manifest(folder: AnyPath) -> BundleManifest:
    """Read and check a bundle's manifest.

    Raises:
        BundleError: if it is missing, damaged, changed, or of another format version.
    """
    return parse_manifest(manifest_bytes(folder))


def manifest_bytes(folder: AnyPath) -> bytes:
    """Return the bytes of a bundle's manifest.

    Raises:
        BundleError: if there is none, or if it is larger than 64 MiB.
    """
    check_bundle(folder)
    with (folder / MANIFEST).open("rb") as file:
        data = bytes(file.read(_MAX_MANIFEST_BYTES + 1))
    if len(data) > _MAX_MANIFEST_BYTES:
        raise BundleError(
            f"The bundle's {MANIFEST} must have at most {_MAX_MANIFEST_BYTES} bytes; it has more."
            f" {_REMEDY}"
        )
    return data


def parse_manifest(data: bytes) -> BundleManifest:
    """Return the manifest that its bytes describe; raises the same errors as `read_manifest`."""
    values = _check_kind(data)
    manifest = from_json(
        BundleManifest, data, what=f"The bundle's {MANIFEST}", error=BundleError, remedy=_REMEDY
    )
    if manifest.version != _version_of(values):
        raise BundleError(
            f"The bundle's version must match its {MANIFEST}; it does not, so the manifest was"
            f" changed after it was written. {_REMEDY}"
        )
    if not manifest.files.keys() <= MAX_BYTES.keys() or not all(
        map(is_sha256, manifest.files.values())
    ):
        raise BundleError(
            f"The bundle's {MANIFEST} must list {', '.join(MAX_BYTES)} with their sha256 and"
            f" nothing else; it lists something else. {_REMEDY}"
        )
    if not 1 <= manifest.num_networks <= MAX_NETWORKS:
        raise BundleError(
            f"The bundle's {MANIFEST} must describe 1 to {MAX_NETWORKS} networks; it describes"
            f" {manifest.num_networks}. {_REMEDY}"
        )
    num_classes = manifest.task.num_classes
    if len(manifest.calibrator.bias) != num_classes or any(
        len(p.logits) != num_classes for p in manifest.probes
    ):
        raise BundleError(
            f"The bundle's {MANIFEST} must have a bias and a logit for each of {num_classes}"
            f" classes; their number differs. {_REMEDY}"
        )
    return manifest


def _check_kind(data: bytes) -> dict[str, Any]:
    """Check the kind and the format version before the fields are read.

    Raises:
        BundleError: if the file is not JSON, or is of another kind or format version.
    """
    try:
        values = json.loads(data)
    except ValueError as error:  # not JSON, or not UTF-8
        raise BundleError(
            f"The bundle's {MANIFEST} must be JSON; it is damaged. {_REMEDY}"
        ) from error
    if not isinstance(values, dict) or values.get("kind") != KIND:
        raise BundleError(
            f"The bundle's {MANIFEST} must describe a melanoma bundle; it describes something else."
            " Pass OUT/RUN/bundle."
        )
    if values.get("format_version") != FORMAT_VERSION:
        raise BundleError(
            f"The format version of the bundle must be {FORMAT_VERSION}; it is"
            f" {values.get('format_version')!r}. Use the release that wrote it."
        )
    return values
