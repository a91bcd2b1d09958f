"""Every setting of a run as frozen dataclasses.

A configuration is a dict only while it crosses a process (`dataclasses.asdict` and `from_dict`).
Defaults live here and nowhere else. Knows nothing of training or serving.
"""

import dataclasses
import difflib
import inspect
import json
import re
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Self

from melanoma.errors import SettingError
from melanoma.io.typed import Strict

DISCLAIMER = "Research use only. Not a medical device; not a diagnosis."
TTA_COPIES = (1, 2, 4)


def _require(condition: bool, path: str, rule: str, value: object) -> None:
    if not condition:
        raise SettingError(f"{path} must be {rule}; it is {value!r}.")


class _Config(Strict):
    """Base of all configuration dataclasses: strict reading and overriding."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, _path: str = "") -> Self:
        """Build from nested plain values; unknown keys are refused.

        Args:
            values: plain values by name; sections are nested.

        Raises:
            SettingError: if a key is unknown (the message names the nearest known one) or a value
                breaks its rule.
        """
        hints = typing.get_type_hints(cls)
        known = {field.name: hints[field.name] for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        arguments = {}
        for key, value in values.items():
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = (
                    f"Did you mean {_path}{near[0]}?"
                    if near
                    else f"Known settings are {', '.join(known)}."
                )
                raise SettingError(f"{_path}{key} is not a setting. {hint}")
            arguments[key] = _convert(value, known[key], f"{_path}{key}")
        return cls(**arguments)

    def with_overrides(self, overrides: Iterable[str]) -> Self:
        """Return a copy with some settings replaced.

        Args:
            overrides: texts ``section.field=value``. Values are JSON; any other text is a string.

        Raises:
            SettingError: if a text is not of this form, a setting is unknown, or a value breaks its
                rule.
        """
        values = dataclasses.asdict(self)  # type: ignore[call-overload]
        for override in overrides:
            path, separator, text = override.partition("=")
            if not separator:
                raise SettingError(f"--set must be KEY=VALUE; it is {override!r}.")
            *sections, name = path.strip().split(".")
            target = values
            for section in sections:
                target = target.setdefault(section, {})
                if not isinstance(target, dict):
                    raise SettingError(
                        f"{path} is not a setting; {section} holds a value, not a section."
                    )
            target[name] = _parse(text)
        return self.from_dict(values)


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting of a configuration.

    Attributes:
        name: as `--set` takes it, such as optim.lr.
        value: its value in this configuration.
        meaning: what it does and which values it takes.
    """

    name: str
    value: Any
    meaning: str


def settings_of(config: _Config, prefix: str = "") -> list[Setting]:
    """Return every setting of a configuration, in order, with its meaning from the docstring."""
    meanings = _attributes(inspect.getdoc(type(config)) or "")
    found: list[Setting] = []
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        if isinstance(value, _Config):
            found += settings_of(value, f"{prefix}{field.name}.")
        else:
            found.append(Setting(f"{prefix}{field.name}", value, meanings[field.name]))
    return found


def _attributes(docstring: str) -> dict[str, str]:
    """Return the entries in the Attributes section of a docstring by name."""
    _, _, listed = docstring.partition("Attributes:\n")
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", listed, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _convert(value: Any, hint: Any, path: str) -> Any:
    if isinstance(hint, type) and issubclass(hint, _Config):
        _require(isinstance(value, Mapping), path, "a section (section.field=value)", value)
        return hint.from_dict(value, _path=f"{path}.")
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(option for option in hint.__args__ if option is not types.NoneType)
    origin = typing.get_origin(hint)
    if origin is tuple:
        _require(isinstance(value, list | tuple), path, "a list", value)
        inner = typing.get_args(hint)[0]
        return tuple(_convert(item, inner, path) for item in value)
    if hint is float:
        _require(
            isinstance(value, int | float) and not isinstance(value, bool), path, "a number", value
        )
        return float(value)
    _require(
        isinstance(value, hint) and (hint is bool or not isinstance(value, bool)),
        path,
        f"of type {hint.__name__}",
        value,
    )
    return value


@dataclasses.dataclass(frozen=True)
class DataConfig(_Config):
    """What the network is shown.

    Attributes:
        input_height: network input height, px.
        input_width: network input width, px; the default 4:3 keeps the shape of dermoscopic images.
        mean: channel means subtracted after scaling to [0, 1].
        std: channel deviations divided by.
        validation_fold: the fold that chooses the epoch and fits the calibrator; the other folds
            train.
        tta: mirrored copies averaged at prediction time (1, 2 or 4).
    """

    input_height: int = 96
    input_width: int = 128
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    validation_fold: int = 0
    tta: int = 4

    def __post_init__(self) -> None:
        for name in ("input_height", "input_width"):
            _require(
                32 <= getattr(self, name) <= 2048,
                f"data.{name}",
                "32 to 2048 px",
                getattr(self, name),
            )
        ratio = self.input_width / self.input_height
        _require(
            abs(ratio * 3 / 4 - 1) < 0.03,
            "data.input_width / data.input_height",
            "4:3 within 3 %, the shape of the stored images",
            ratio,
        )
        _require(len(self.mean) == 3, "data.mean", "three numbers", self.mean)
        _require(
            len(self.std) == 3 and min(self.std) > 0, "data.std", "three positive numbers", self.std
        )
        _require(
            self.validation_fold >= 0, "data.validation_fold", "at least 0", self.validation_fold
        )
        _require(self.tta in TTA_COPIES, "data.tta", f"one of {TTA_COPIES}", self.tta)


@dataclasses.dataclass(frozen=True)
class AugmentConfig(_Config):
    """How far a training image may be changed.

    Flips and turns have no limit, because dermoscopy has no up or down.

    Attributes:
        zoom: largest factor by which an image is enlarged or shrunk, at least 1.
        shift: largest shift as a share of the side, in [0, 0.5].
        brightness: largest relative change of brightness, in [0, 1).
        contrast: largest relative change of contrast, in [0, 1).
        saturation: largest relative change of saturation, in [0, 1).
        tint: largest relative gain of a single colour channel (light source), in [0, 1).
        random_ops: number of operations of RandAugment that change each image, from 0 to 4.
        op_strength: how strong they are at most, in [0, 1].
        mixup: share of the images that are blended with another one of the batch, in [0, 1].
        cutmix: share of the images into which a part of another one is pasted, in [0, 1]; with
            mixup at most 1.
        mix_until: share of the epochs after which images are neither blended nor pasted, in [0, 1].
    """

    zoom: float = 1.25
    shift: float = 0.08
    brightness: float = 0.12
    contrast: float = 0.15
    saturation: float = 0.2
    tint: float = 0.05
    random_ops: int = 0
    op_strength: float = 0.5
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_until: float = 0.8

    def __post_init__(self) -> None:
        _require(self.zoom >= 1, "augment.zoom", "at least 1", self.zoom)
        _require(0 <= self.shift <= 0.5, "augment.shift", "in [0, 0.5]", self.shift)
        for name in ("brightness", "contrast", "saturation", "tint"):
            _require(
                0 <= getattr(self, name) < 1, f"augment.{name}", "in [0, 1)", getattr(self, name)
            )
        _require(0 <= self.random_ops <= 4, "augment.random_ops", "from 0 to 4", self.random_ops)
        for name in ("op_strength", "mixup", "cutmix", "mix_until"):
            _require(
                0 <= getattr(self, name) <= 1, f"augment.{name}", "in [0, 1]", getattr(self, name)
            )
        both = self.mixup + self.cutmix
        _require(both <= 1, "augment.mixup + augment.cutmix", "at most 1", both)


@dataclasses.dataclass(frozen=True)
class ModelConfig(_Config):
    """The network.

    Attributes:
        backbone: a timm model name.
        drop_path: stochastic depth rate, in [0, 1).
        layer_scale: initial value of ConvNeXt's layer scale; null keeps timm's 1e-6, which is meant
            for very long training.
        embedding_size: length of the embeddings of a model outside, which stand in for the
            backbone embeddings; 0 for a network on images. `train --embeddings` sets both.
    """

    backbone: str = "convnext_atto"
    drop_path: float = 0.0
    layer_scale: float | None = None
    embedding_size: int = 0

    def __post_init__(self) -> None:
        _require(
            (self.embedding_size > 0) == (self.backbone == "embeddings"),
            "model.embedding_size",
            "above 0 with model.backbone embeddings, and 0 otherwise",
            self.embedding_size,
        )
        _require(0 <= self.drop_path < 1, "model.drop_path", "in [0, 1)", self.drop_path)
        _require(
            self.layer_scale is None or self.layer_scale > 0,
            "model.layer_scale",
            "positive or null",
            self.layer_scale,
        )


@dataclasses.dataclass(frozen=True)
class LossConfig(_Config):
    """The weighted focal loss.

    The default gamma is 0, which is weighted cross-entropy. No winner of an ISIC challenge used
    focal loss, and it distorts the probabilities that a threshold rests on. Only a search on
    grouped folds can show that another gamma helps.

    Attributes:
        gamma: 0 or in [1, 5]; between 0 and 1 the gradient is infinite at p = 1.
        tau: class weights are ``n_c ** -tau``, in [0, 1]; 0.5 is the square root of the inverse
            frequency.
        target_factor: further factor on the weights of the targets, in [1, 8].
        source_offset: how much of what a source alone says about the class is taken from the
            network, in [0, 1]; 0 is off, and without several sources it changes nothing.
        smoothing: share of each label that is spread over all classes, in [0, 1).
        teacher_share: share of the teacher's probabilities in each label, in [0, 1]; without a
            teacher it changes nothing.
    """

    gamma: float = 0.0
    tau: float = 0.5
    target_factor: float = 1.0
    source_offset: float = 0.0
    smoothing: float = 0.0
    teacher_share: float = 0.7

    def __post_init__(self) -> None:
        check_gamma(self.gamma)
        _require(0 <= self.tau <= 1, "loss.tau", "in [0, 1]", self.tau)
        _require(
            1 <= self.target_factor <= 8, "loss.target_factor", "in [1, 8]", self.target_factor
        )
        _require(
            0 <= self.source_offset <= 1, "loss.source_offset", "in [0, 1]", self.source_offset
        )
        _require(0 <= self.smoothing < 1, "loss.smoothing", "in [0, 1)", self.smoothing)
        _require(
            0 <= self.teacher_share <= 1, "loss.teacher_share", "in [0, 1]", self.teacher_share
        )


def check_gamma(gamma: float) -> None:
    """Raise SettingError unless gamma is 0 or in [1, 5]."""
    if not (gamma == 0 or 1 <= gamma <= 5):
        raise SettingError(f"loss.gamma must be 0 or in [1, 5]; it is {gamma!r}.")


@dataclasses.dataclass(frozen=True)
class OptimConfig(_Config):
    """The optimiser, its schedule and the moving average of the weights.

    Attributes:
        optimizer: adamw, or muon (orthogonalised momentum for matrices, AdamW for the rest), which
            learns from random weights in far fewer epochs.
        epochs: passes over the training folds.
        batch_size: images per step over all workers together.
        accumulate: parts in which a worker computes its share of a batch, at least 1; more need
            less memory and give the same step, except in networks with batch normalisation.
        lr: peak learning rate of the head.
        weight_decay: decoupled, not applied to norms and biases.
        layer_decay: factor on the learning rate per block away from the head, in (0, 1]; 1 is off.
        frozen_layers: layers nearest the image, counted as for the layer decay, that keep the
            weights they start with; they cost no backward pass.
        head_only: whether the backbone keeps the weights it starts with. Its features are computed
            once, and the last layer is fitted to them with as many strengths of its penalty as
            there are epochs, from 1 down by a factor of 3.2 each; nothing is augmented, and of this
            section only epochs counts.
        warmup_epochs: epochs of linear warm-up before the cosine.
        ema_decay: moving average of the weights, in [0, 1); 0 is off. Step t uses 1 - (1 +
            t)^(-2/3) while that is less.
        grad_clip: largest gradient norm; 0 is off.
        class_sampling: an epoch draws a class with n images in proportion to ``n ** (1 -
            class_sampling)``, in [0, 1]; 0 shows every image once, 1 all classes equally often.
        progressive_resizing: pairs (share of the epochs, scale): until that share, images are shown
            at that scale of the input size.
    """

    optimizer: str = "adamw"
    epochs: int = 30
    batch_size: int = 32
    accumulate: int = 1
    lr: float = 1e-3
    weight_decay: float = 0.05
    layer_decay: float = 1.0
    frozen_layers: int = 0
    head_only: bool = False
    warmup_epochs: float = 1.0
    ema_decay: float = 0.99
    grad_clip: float = 5.0
    class_sampling: float = 0.0
    progressive_resizing: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        _require(
            self.optimizer in ("adamw", "muon"), "optim.optimizer", "adamw or muon", self.optimizer
        )
        _require(self.epochs >= 1, "optim.epochs", "at least 1", self.epochs)
        _require(self.batch_size >= 1, "optim.batch_size", "at least 1", self.batch_size)
        _require(self.accumulate >= 1, "optim.accumulate", "at least 1", self.accumulate)
        _require(self.lr > 0, "optim.lr", "positive", self.lr)
        _require(self.weight_decay >= 0, "optim.weight_decay", "at least 0", self.weight_decay)
        _require(0 < self.layer_decay <= 1, "optim.layer_decay", "in (0, 1]", self.layer_decay)
        _require(self.frozen_layers >= 0, "optim.frozen_layers", "at least 0", self.frozen_layers)
        _require(
            0 <= self.warmup_epochs < self.epochs,
            "optim.warmup_epochs",
            "in [0, optim.epochs)",
            self.warmup_epochs,
        )
        _require(0 <= self.ema_decay < 1, "optim.ema_decay", "in [0, 1)", self.ema_decay)
        _require(self.grad_clip >= 0, "optim.grad_clip", "at least 0", self.grad_clip)
        _require(
            0 <= self.class_sampling <= 1, "optim.class_sampling", "in [0, 1]", self.class_sampling
        )
        shares = [
            stage[0]
            for stage in self.progressive_resizing
            if len(stage) == 2 and 0 < stage[0] <= 1 and 0 < stage[1] <= 1
        ]
        _require(
            len(shares) == len(self.progressive_resizing) and shares == sorted(shares),
            "optim.progressive_resizing",
            "rising pairs [share of the epochs in (0, 1], scale in (0, 1]]",
            self.progressive_resizing,
        )


@dataclasses.dataclass(frozen=True)
class TrainConfig(_Config):
    """One training run.

    Example:
        >>> TrainConfig().with_overrides(["loss.gamma=2", "optim.epochs=3"]).optim.epochs
        3

    Attributes:
        data: what the network is shown.
        augment: how far a training image may be changed.
        model: the network.
        loss: the weighted focal loss.
        optim: the optimiser and its schedule.
        seed: with the epoch and the image_id the only source of randomness.
        target_sensitivity: the sensitivity of the targets that the contract promises, in (0, 1).
        accesses: number of networks that will be calibrated on the data set's calibration split,
            declared before the first of them; 0 leaves it open.
    """

    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    seed: int = 0
    target_sensitivity: float = 0.9
    accesses: int = 0

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 2**63, "seed", "in [0, 2^63)", self.seed)
        _require(
            0 < self.target_sensitivity < 1,
            "target_sensitivity",
            "in (0, 1)",
            self.target_sensitivity,
        )
        _require(self.accesses >= 0, "accesses", "at least 0", self.accesses)
