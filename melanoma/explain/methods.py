"""The kinds of heatmap: the one place to add another. Command line, API and page read this list.

Grad-CAM comes with the prediction, from the same feature map. Every other kind is made from the
image and its Grad-CAM by an `Explainer`, on replicas of its own.
"""

import dataclasses
from collections.abc import Callable

from melanoma.errors import SettingError
from melanoma.explain.guided import GuidedExplainer
from melanoma.explain.layer_cam import LayerCamExplainer
from melanoma.explain.subject import Explainer, Subject


@dataclasses.dataclass(frozen=True)
class Method:
    """One kind of heatmap.

    Attributes:
        title: its name for people.
        meaning: what it shows, and what it does not.
        make: makes its explainer; None if the prediction itself brings the heatmap.
    """

    title: str
    meaning: str
    make: Callable[[Subject], Explainer] | None


METHODS: dict[str, Method] = {
    "grad_cam": Method(
        "Grad-CAM",
        "Grad-CAM shows which regions raised the score. Its cells are coarse, each 32 px of the"
        " network's input.",
        None,
    ),
    "layer_cam": Method(
        "LayerCAM",
        "LayerCAM shows which regions raised the score, from an earlier layer than Grad-CAM. Its"
        " cells are half as large.",
        LayerCamExplainer,
    ),
    "guided_grad_cam": Method(
        "Guided Grad-CAM",
        "Guided Grad-CAM shows small spots that raised the score. They can follow borders that the"
        " network does not detect.",
        GuidedExplainer,
    ),
}
"""Kinds of heatmap by name; the first is the default."""
DEFAULT_METHOD = next(iter(METHODS))


def check_method(name: str) -> str:
    """Return the name of a kind of heatmap.

    Raises:
        SettingError: if there is none of that name.
    """
    if name not in METHODS:
        raise SettingError(
            f"The kind of heatmap must be one of {', '.join(METHODS)}; it is {name}."
        )
    return name
