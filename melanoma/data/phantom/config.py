"""What a phantom data set is. Imports nothing slow, so that a wrong setting is refused at once."""

import dataclasses

from melanoma.errors import SettingError


@dataclasses.dataclass(frozen=True)
class PhantomConfig:
    """What to draw.

    Attributes:
        num_lesions: lesions in all, at least 40.
        seed: the same seed draws the same data set.
        leaks: number of lesions shown again under a second lesion and patient id. No id shows
            such a leak.
        shortcut: whether one source holds nearly all melanomas and so gives the label away.
        melanomas: share of the lesions that are melanomas, in (0, 0.5]. None takes HAM10000's
            share, raised if a contract needs more.
        mimics: share of the melanomas that show no more signs than nevi do, and of the nevi that
            show as many as melanomas, in [0, 0.5]. The images do not tell these from the other
            class.
    """

    num_lesions: int = 2000
    seed: int = 0
    leaks: int = 0
    shortcut: bool = False
    melanomas: float | None = None
    mimics: float = 0.0

    def __post_init__(self) -> None:
        if self.num_lesions < 40:
            raise SettingError(f"--lesions must be at least 40; it is {self.num_lesions}.")
        if not 0 <= self.leaks <= self.num_lesions:
            raise SettingError(
                f"--leaks must be from 0 to the number of lesions; it is {self.leaks}."
            )
        if self.melanomas is not None and not 0 < self.melanomas <= 0.5:
            raise SettingError(f"--melanomas must be in (0, 0.5]; it is {self.melanomas}.")
        if not 0 <= self.mimics <= 0.5:
            raise SettingError(f"--mimics must be in [0, 0.5]; it is {self.mimics}.")
