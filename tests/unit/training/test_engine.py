import copy
import io
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from melanoma.config import TrainConfig
from melanoma.data.dataset import PreparedData, open_prepared
from melanoma.errors import SettingError
from melanoma.training.batches import batches
from melanoma.training.distributed import World
from melanoma.training.engine import (
    TrainState,
    fit,
    input_size,
    learning_rate_factor,
    predict,
    start_state,
)
from melanoma.training.networks import build_model
from melanoma.training.plan import Training, epoch_order
from melanoma.training.selection import SELECTION, selection_score
from tests.tasks import CLASSES

# Largest difference of any weight: sums are made in another order, and Muon raises small singular
# values of what it is given.
PARITY_TOLERANCE = {"adamw": 1e-5, "muon": 1e-4}


def _config(config: TrainConfig, *overrides: str) -> TrainConfig:
    return config.with_overrides(
        [
            "optim.epochs=2",
            "optim.batch_size=32",
            "optim.warmup_epochs=0.5",
            "optim.ema_decay=0.9",
            *overrides,
        ]
    )


def _fit(
    data: PreparedData,
    config: TrainConfig,
    world: World | None = None,
    state: TrainState | None = None,
    on_epoch_end=None,
) -> TrainState:  # type: ignore[no-untyped-def]
    training = Training.on(config, data, world=world)
    if state is None:
        torch.manual_seed(config.seed)
        state = start_state(build_model(config.model, len(CLASSES)), config, world)
    return fit(training, training.world.wrap(state.model), state, on_epoch_end or (lambda _: None))


def _work(rank: int, size: int, folder: str, config: TrainConfig, port: int, out: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=size)
    state = _fit(open_prepared(Path(folder)), config, World.current())
    if rank == 0:
        torch.save(
            {
                "model": state.model.state_dict(),
                "ema": state.evaluated.state_dict(),
                "history": state.history,
                "gradients": {
                    name: parameter.grad for name, parameter in state.model.named_parameters()
                },
            },
            out,
        )
    dist.destroy_process_group()


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


MIXED = (
    "augment.random_ops=1",
    "augment.mixup=0.4",
    "augment.cutmix=0.6",
    "optim.class_sampling=1",
    "loss.smoothing=0.1",
)


@pytest.mark.parametrize(
    ("optimizer", "num_workers", "accumulate", "more"),
    [("adamw", 2, 1, ()), ("muon", 2, 3, ()), ("muon", 4, 1, ()), ("adamw", 2, 3, MIXED)],
)
def test_several_workers_end_like_one_with_the_whole_batch(
    optimizer: str,
    num_workers: int,
    accumulate: int,
    more: tuple[str, ...],
    prepared: PreparedData,
    tiny_config: TrainConfig,
    tmp_path: Path,
) -> None:
    """The weighted mean is taken over the global batch, and which branches an image skips, and with
    what it is mixed, does not depend on who shows it, or in how many parts."""
    settings = (
        "optim.lr=0.0005",
        "optim.grad_clip=0",
        "loss.gamma=2",
        "loss.tau=1",
        "model.drop_path=0.3",
        *more,
    )
    config = _config(tiny_config, f"optim.optimizer={optimizer}", *settings)
    one = _fit(prepared, config)
    out = tmp_path / "several.pt"
    mp.set_forkserver_preload([__name__])  # so that torch is imported once for all workers
    mp.start_processes(
        _work,
        (
            num_workers,
            str(prepared.folder),
            config.with_overrides([f"optim.accumulate={accumulate}"]),
            _free_port(),
            str(out),
        ),
        nprocs=num_workers,
        start_method="forkserver",
    )
    two = torch.load(out, weights_only=True)
    for name, value in one.model.state_dict().items():
        assert torch.allclose(value, two["model"][name], atol=PARITY_TOLERANCE[optimizer]), name
    for name, value in one.evaluated.state_dict().items():
        assert torch.allclose(value, two["ema"][name], atol=PARITY_TOLERANCE[optimizer]), name
    # Both optimisers would forgive a factor on all gradients; the last step's show that there is
    # none.
    for name, parameter in one.model.named_parameters():
        scale = float(parameter.grad.abs().max())
        assert torch.allclose(parameter.grad, two["gradients"][name], atol=0.1 * scale + 1e-6), name
    for mine, other in zip(one.history, two["history"], strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], abs=1e-4)
        assert mine["auroc"] == pytest.approx(other["auroc"], abs=1e-3)


def test_a_resumed_run_ends_bit_for_bit_like_one_left_alone(
    prepared: PreparedData, tiny_config: TrainConfig
) -> None:
    config = _config(tiny_config, "model.drop_path=0.2", "optim.epochs=3")
    whole = _fit(prepared, config)
    saved: list[bytes] = []

    def save(state: TrainState) -> None:
        buffer = io.BytesIO()
        torch.save(state.state_dict(), buffer)
        saved.append(buffer.getvalue())

    _fit(prepared, config, on_epoch_end=save)
    torch.manual_seed(77)  # whatever the new process did before must not matter
    fresh = start_state(build_model(config.model, len(CLASSES)), config)
    fresh.load_state_dict(torch.load(io.BytesIO(saved[0]), weights_only=True))
    assert fresh.epoch == 1
    resumed = _fit(prepared, config, state=fresh)
    for name, value in whole.evaluated.state_dict().items():
        assert torch.equal(value, resumed.evaluated.state_dict()[name]), name
    timeless = [
        {k: v for k, v in row.items() if not k.endswith("_seconds")}
        for row in (*whole.history, *resumed.history)
    ]
    assert timeless[:3] == timeless[3:]


def test_training_draws_from_no_generator_of_torch(
    prepared: PreparedData, tiny_config: TrainConfig
) -> None:
    """Whatever does would give a run another end with another number of workers, or after a
    restart."""
    state = start_state(
        build_model(tiny_config.model, len(CLASSES)),
        config := _config(tiny_config, "model.drop_path=0.3"),
    )
    before = torch.get_rng_state()
    _fit(prepared, config, state=state)
    assert torch.equal(before, torch.get_rng_state())


def test_predictions_are_made_in_float32_whatever_training_uses(
    prepared: PreparedData, tiny_config: TrainConfig, trained: torch.nn.Module
) -> None:
    training = Training.on(tiny_config, prepared)
    expected = predict(trained, training.validation, training.preprocess).logits
    with torch.autocast("cpu", torch.bfloat16):
        found = predict(trained, training.validation, training.preprocess).logits
    assert np.array_equal(found, expected)


def test_a_broken_loss_stops_the_run(prepared: PreparedData, tiny_config: TrainConfig) -> None:
    state = start_state(build_model(tiny_config.model, len(CLASSES)), tiny_config)
    with torch.no_grad():
        next(iter(state.model.parameters())).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="finite"):
        _fit(prepared, _config(tiny_config), state=state)


def test_frozen_layers_keep_weights_and_statistics(
    prepared: PreparedData, tiny_config: TrainConfig
) -> None:
    config = _config(
        tiny_config,
        "model.backbone=test_efficientnet",
        "model.layer_scale=null",
        "optim.frozen_layers=2",
    )
    torch.manual_seed(config.seed)
    before = build_model(config.model, len(CLASSES))
    state = _fit(prepared, config, state=start_state(copy.deepcopy(before), config))
    frozen = ("conv_stem.", "bn1.", "blocks.0.")
    learned = {"weight", "bias", "running_mean", "running_var"}
    after = state.model.state_dict()
    for name, value in before.state_dict().items():
        if name.startswith(frozen):
            assert torch.equal(value, after[name]), name
        elif name.rpartition(".")[2] in learned:
            assert not torch.equal(value, after[name]), name


def test_a_head_alone_is_not_left_to_train(tiny_config: TrainConfig) -> None:
    with pytest.raises(SettingError, match=r"optim\.frozen_layers must be less than 10"):
        start_state(
            build_model(tiny_config.model, len(CLASSES)),
            _config(tiny_config, "optim.frozen_layers=10"),
        )


def test_a_batch_larger_than_the_data_is_refused(
    prepared: PreparedData, tiny_config: TrainConfig
) -> None:
    with pytest.raises(SettingError, match=r"optim\.batch_size"):
        _fit(prepared, _config(tiny_config, "optim.batch_size=100000"))


def test_every_epoch_shows_every_image_once_in_another_order() -> None:
    first, second = epoch_order(50, seed=0, epoch=0), epoch_order(50, seed=0, epoch=1)
    assert sorted(first) == sorted(second) == list(range(50))
    assert not np.array_equal(first, second)


def test_class_sampling_shows_rare_classes_more_often(
    prepared: PreparedData, tiny_config: TrainConfig
) -> None:
    def counts(sampling: float) -> np.ndarray:
        config = tiny_config.with_overrides([f"optim.class_sampling={sampling}"])
        training = Training.on(config, prepared)
        labels = training.train.labels.numpy()
        orders = np.concatenate([training.order(epoch) for epoch in range(20)])
        return np.bincount(labels[orders], minlength=len(CLASSES)) / len(orders)

    share = np.bincount(prepared.rows("train", without_fold=0)["label"], minlength=len(CLASSES))
    there = share > 0
    assert np.allclose(counts(0), share / share.sum())
    assert np.allclose(counts(1)[there], 1 / there.sum(), atol=0.02)


def test_a_repeated_image_is_changed_anew(prepared: PreparedData, tiny_config: TrainConfig) -> None:
    config = tiny_config.with_overrides(["optim.class_sampling=1", "optim.batch_size=64"])
    training = Training.on(config, prepared)
    order = training.order(0)[: 64 * training.steps_per_epoch]
    read = list(batches(training, 0, num_depth_draws=0, pin=False))
    draws = torch.cat([batch.draws for batch in read])
    often = int(np.bincount(order).argmax())
    places = np.flatnonzero(order == often)
    assert len(places) > 1
    assert len(draws[places].unique(dim=0)) == len(places)


def test_mixing_ends_before_the_last_epochs(
    prepared: PreparedData, tiny_config: TrainConfig
) -> None:
    mixed = ["optim.epochs=10", "augment.cutmix=1", "augment.mix_until=0.7"]
    training = Training.on(tiny_config.with_overrides(mixed), prepared)
    assert [training.mixes(epoch) for epoch in range(10)] == [True] * 7 + [False] * 3


def test_the_rate_warms_up_and_falls_to_zero() -> None:
    factors = [learning_rate_factor(step, num_steps=100, warmup_steps=10) for step in range(100)]
    assert np.argmax(factors) in (9, 10)
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == 1
    assert factors[-1] < 0.001
    assert all(a >= b for a, b in itertools.pairwise(factors[10:]))


def test_images_grow_to_the_input_size(tiny_config: TrainConfig) -> None:
    config = copy.deepcopy(tiny_config).with_overrides(
        ["optim.epochs=10", "optim.progressive_resizing=[[0.5,0.5],[0.8,0.75]]"]
    )
    sizes = [input_size(config, epoch) for epoch in range(10)]
    assert sizes == [(24, 32)] * 5 + [(36, 48)] * 3 + [(48, 64)] * 2


@pytest.mark.parametrize(
    ("within", "auroc", "score"),
    [(0.8, 0.9, 0.8), (float("nan"), 0.9, 0.9), (float("nan"), float("nan"), 0.0)],
)
def test_without_a_source_that_holds_both_all_images_choose_the_epoch(
    within: float, auroc: float, score: float
) -> None:
    assert selection_score({SELECTION: within, "auroc": auroc}) == score
