"""The schemas of responses over HTTP."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from melanoma.config import DISCLAIMER, ModelConfig
from melanoma.evidence.calibration import Calibrator
from melanoma.evidence.contract import Contract
from melanoma.evidence.operating_point import OperatingPoint
from melanoma.explain.claims import Claim
from melanoma.imaging.preprocess import Preprocess
from melanoma.task import Task


class _Model(BaseModel):
    model_config = ConfigDict(
        extra="forbid", protected_namespaces=(), serialize_by_alias=True, validate_by_name=True
    )


class ModelInfo(_Model):
    """The network that answered."""

    name: str
    version: str
    weights_sha256: str


class Explanation(_Model):
    """A heatmap. `lesion_claim` is none unless a scorecard supports that it marks lesions."""

    method: str
    class_name: str = Field(alias="class")
    heatmap_png: str = Field(
        description="base64 PNG, greyscale, divided by its peak, in the frame of the upright image"
    )
    overlay_png: str = Field(description="base64 PNG of the heatmap over the image")
    peak: float = Field(
        description="largest value of the heatmap before scaling; 0 means that it is empty"
    )
    lesion_claim: Claim = "none"


class ExplanationMethod(_Model):
    """One kind of heatmap that can be requested."""

    name: str
    title: str
    meaning: str
    lesion_claim: Claim


class PredictResponse(_Model):
    """The answer to one image, or to several images of one lesion judged together."""

    request_id: str
    model: ModelInfo
    probabilities: dict[str, float]
    decision: Literal["refer", "no_referral", "cannot_assess"]
    threshold: float
    num_images: int = Field(description="number of images that were judged together")
    contract: Contract = Field(
        description="the one that decided: that for one image, or that for several of one lesion"
    )
    contract_sentence: str
    warnings: list[str]
    explanation: Explanation | None = Field(
        default=None, description="of the first image; null if none was asked for"
    )
    further_explanations: list[Explanation] = Field(
        default=[], description="those of the other images, in the order of the request"
    )
    disclaimer: str = DISCLAIMER


class ModelResponse(_Model):
    """The public description of the served bundle."""

    model: ModelInfo
    task: Task
    architecture: ModelConfig
    preprocessing: Preprocess
    calibrator: Calibrator
    operating_point: OperatingPoint
    contract_sentence: str
    several_images: OperatingPoint | None = Field(
        description="threshold and contract for several images of one lesion; null if the model"
        " judges single images only"
    )
    several_images_sentence: str | None
    explanations: list[ExplanationMethod]
    group_columns: tuple[str, ...]
    model_card: str
    disclaimer: str = DISCLAIMER


class Problem(_Model):
    """An error of the service as RFC 9457 problem details."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    error: str | None = Field(
        default=None, description="the same as detail; only under /v2, whose clients read it here"
    )


class Alive(_Model):
    """The process is alive."""

    status: Literal["ok"] = "ok"
