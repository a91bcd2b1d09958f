"""The task that most tests use, and where its target stands."""

from melanoma.task import TASKS

HAM = TASKS["ham10000"]
CLASSES = HAM.classes
MELANOMA_INDEX = CLASSES.index("mel")
