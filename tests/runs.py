"""Small training runs without Ray."""

from melanoma.config import CLASSES, TrainConfig
from melanoma.data.dataset import PictureDataset, PreparedData
from melanoma.distributed import World
from melanoma.engine import Training
from melanoma.images import Preprocess
from melanoma.losses import class_weights_from_counts


def training_of(data: PreparedData, config: TrainConfig, world: World | None = None) -> Training:
    rows = data.rows("train", without_fold=0)
    counts = [int((rows["label"] == label).sum()) for label in range(len(CLASSES))]
    return Training(
        config=config,
        train=PictureDataset(data, rows),
        validation=PictureDataset(data, data.rows("train", fold=0)),
        preprocess=Preprocess(data.canvas, config.data),
        class_weights=class_weights_from_counts(counts, tau=config.loss.tau),
        world=world or World(),
    )
