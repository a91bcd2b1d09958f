"""How a data set is prepared. Imports nothing slow, so that a wrong setting is refused at once."""

import dataclasses

from melanoma.errors import SettingError
from melanoma.io.storage import AnyPath
from melanoma.task import DEFAULT_TASK, TASKS, Task


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """How to prepare a data set.

    Example:
        >>> PrepareConfig(size=128, group_by=("patient",)).num_folds
        5

    Attributes:
        task: the classes.
        population: what the images are a sample of, in words. None takes the name of SOURCE.
        size: long side of the stored images, 64 to 2048 px.
        num_folds: folds of the training part, at least 2.
        test_fraction: share of the images for test, in [0, 1).
        calibration_fraction: share for calibration, in [0, 1); below 1 with test_fraction.
        seed: of the splits.
        group_by: metadata columns whose values must not be split. None takes those of patient_id
            and lesion_id that exist.
        same_lesion: CSV of known pairs (two columns of image ids), or None.
        splits: CSV `image_id,split` to use instead of drawing splits, or None.
        skip_bad: leave out bad rows instead of refusing them.

    Raises:
        SettingError: if a size, fraction or number of folds is out of range.
    """

    task: Task = TASKS[DEFAULT_TASK]
    population: str | None = None
    size: int = 256
    num_folds: int = 5
    test_fraction: float = 0.15
    calibration_fraction: float = 0.15
    seed: int = 0
    group_by: tuple[str, ...] | None = None
    same_lesion: AnyPath | None = None
    splits: AnyPath | None = None
    skip_bad: bool = False

    def __post_init__(self) -> None:
        if not 64 <= self.size <= 2048:
            raise SettingError(f"--size must be 64 to 2048 px; it is {self.size}.")
        check_shares(self.test_fraction, self.calibration_fraction, self.num_folds)


def check_shares(test_fraction: float, calibration_fraction: float, num_folds: int) -> None:
    """Raise SettingError unless splits of such shares can be drawn."""
    if not (
        test_fraction >= 0
        and calibration_fraction >= 0
        and test_fraction + calibration_fraction < 1
    ):
        raise SettingError(
            "Test and calibration fractions must be at least 0 and below 1 together; they are"
            f" {test_fraction} and {calibration_fraction}."
        )
    if num_folds < 2:
        raise SettingError(f"The number of folds must be at least 2; it is {num_folds}.")
