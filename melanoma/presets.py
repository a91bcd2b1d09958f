"""Runs chosen by name: functions returning a full TrainConfig."""

from collections.abc import Callable

from melanoma.config import DataConfig, LossConfig, ModelConfig, OptimConfig, TrainConfig
from melanoma.errors import SettingError


def smoke() -> TrainConfig:
    """Return seconds of work on the smallest ConvNeXt: for tests and first looks, not for results."""
    return TrainConfig(
        data=DataConfig(input_height=72, input_width=96, tta=1),
        model=ModelConfig(backbone="test_convnext", layer_scale=0.1),
        optim=OptimConfig(epochs=2, batch_size=32, lr=2e-3, warmup_epochs=0.5),
    )


def cpu_quick() -> TrainConfig:
    """Return what two CPU cores train from random weights on HAM10000 within 12 minutes."""
    return TrainConfig(
        data=DataConfig(input_height=72, input_width=96, tta=4),
        model=ModelConfig(backbone="convnext_atto", layer_scale=0.1),
        optim=OptimConfig(
            optimizer="muon", epochs=6, batch_size=32, lr=1e-3, warmup_epochs=1, ema_decay=0.998
        ),
    )


def cpu() -> TrainConfig:
    """Return the best known that two CPU cores train from random weights on HAM10000 within 60 minutes."""
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


def gpu() -> TrainConfig:
    """Return the full recipe for GPUs: fine-tuning from ImageNet-22k weights at 224 px, a batch of 64 over all workers."""
    return TrainConfig(
        data=DataConfig(input_height=168, input_width=224, tta=4),
        model=ModelConfig(backbone="convnext_tiny.fb_in22k_ft_in1k", drop_path=0.1),
        loss=LossConfig(),
        optim=OptimConfig(
            epochs=18, batch_size=64, lr=1e-4, layer_decay=0.75, warmup_epochs=2, ema_decay=0.999
        ),
    )


PRESETS: dict[str, Callable[[], TrainConfig]] = {
    "smoke": smoke,
    "cpu_quick": cpu_quick,
    "cpu": cpu,
    "gpu": gpu,
}


def preset(name: str) -> TrainConfig:
    """Return a preset by name.

    Example:
        >>> preset("cpu_quick").model.backbone
        'convnext_atto'

    Raises:
        SettingError: if there is none of that name.
    """
    if name not in PRESETS:
        raise SettingError(f"--preset must be one of {', '.join(PRESETS)}, got {name}.")
    return PRESETS[name]()
