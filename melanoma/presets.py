"""Presets: runs chosen by name, each a function that returns a full TrainConfig."""

from collections.abc import Callable

from melanoma.config import (
    AugmentConfig,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)
from melanoma.errors import SettingError


def smoke() -> TrainConfig:
    """Return a run of seconds on the smallest ConvNeXt, for tests and first tries."""
    return TrainConfig(
        data=DataConfig(input_height=72, input_width=96, tta=1),
        model=ModelConfig(backbone="test_convnext", layer_scale=0.1),
        optim=OptimConfig(epochs=2, batch_size=32, lr=2e-3, warmup_epochs=0.5),
    )


def cpu_quick() -> TrainConfig:
    """Return a run from random weights that takes two CPU cores 12 minutes on HAM10000."""
    return TrainConfig(
        data=DataConfig(input_height=72, input_width=96, tta=4),
        model=ModelConfig(backbone="convnext_atto", layer_scale=0.1),
        optim=OptimConfig(
            optimizer="muon", epochs=6, batch_size=32, lr=1e-3, warmup_epochs=1, ema_decay=0.998
        ),
    )


def cpu() -> TrainConfig:
    """Return the best known run from random weights within an hour of two CPU cores on HAM10000."""
    return TrainConfig(
        data=DataConfig(input_height=120, input_width=160, tta=4),
        model=ModelConfig(backbone="convnext_atto", layer_scale=0.1),
        optim=OptimConfig(
            optimizer="muon",
            epochs=26,
            batch_size=64,
            lr=1.5e-3,
            warmup_epochs=1,
            ema_decay=0.998,
            progressive_resizing=((0.38, 0.6), (0.84, 0.8)),
        ),
    )


def lite0() -> TrainConfig:
    """Return the best known run on CPUs, from ImageNet weights of EfficientNet-Lite0."""
    return TrainConfig(
        data=DataConfig(
            input_height=144, input_width=192, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), tta=4
        ),
        augment=AugmentConfig(mixup=0.9),
        model=ModelConfig(backbone="tf_efficientnet_lite0", drop_path=0.2),
        loss=LossConfig(tau=0),
        optim=OptimConfig(
            epochs=28,
            batch_size=32,
            lr=1e-3,
            layer_decay=0.85,
            frozen_layers=4,
            warmup_epochs=1,
            ema_decay=0.998,
            class_sampling=0.5,
            progressive_resizing=((0.35, 0.5), (0.75, 0.67)),
        ),
    )


def gpu() -> TrainConfig:
    """Return the full recipe for GPUs.

    It fine-tunes from ImageNet-22k weights at 224 px with a batch of 64 over all workers.
    """
    return TrainConfig(
        data=DataConfig(input_height=168, input_width=224, tta=4),
        model=ModelConfig(backbone="convnext_tiny.fb_in22k_ft_in1k", drop_path=0.1),
        loss=LossConfig(),
        optim=OptimConfig(
            epochs=18, batch_size=64, lr=1e-4, layer_decay=0.75, warmup_epochs=2, ema_decay=0.999
        ),
    )


def _frozen(backbone: str) -> TrainConfig:
    """Return a run that fits a linear head to the features of a frozen backbone."""
    return TrainConfig(
        data=DataConfig(input_height=168, input_width=224, tta=4),
        model=ModelConfig(backbone=backbone),
        optim=OptimConfig(head_only=True, epochs=8, warmup_epochs=0, ema_decay=0),
    )


def frozen_dinov3() -> TrainConfig:
    """Return a linear head on DINOv3's ConvNeXt-Tiny, whose weights have a licence of their own."""
    return _frozen("convnext_tiny.dinov3_lvd1689m")


def frozen_in22k() -> TrainConfig:
    """Return a linear head on the ConvNeXt-Tiny that was trained on ImageNet-22k."""
    return _frozen("convnext_tiny.fb_in22k_ft_in1k")


PRESETS: dict[str, Callable[[], TrainConfig]] = {
    "smoke": smoke,
    "cpu_quick": cpu_quick,
    "cpu": cpu,
    "lite0": lite0,
    "gpu": gpu,
    "frozen_dinov3": frozen_dinov3,
    "frozen_in22k": frozen_in22k,
}


def preset(name: str) -> TrainConfig:
    """Return a preset by name.

    Example:
        >>> preset("cpu_quick").model.backbone
        'convnext_atto'

    Raises:
        SettingError: if no preset has that name.
    """
    if name not in PRESETS:
        raise SettingError(f"--preset must be one of {', '.join(PRESETS)}; it is {name}.")
    return PRESETS[name]()
