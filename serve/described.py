"""The description of a bundle that the classifier sends to the ingress."""

import dataclasses

from melanoma.bundle.deciding import Decider
from melanoma.bundle.manifest import BundleManifest


@dataclasses.dataclass(frozen=True)
class Described:
    """What the ingress needs to know of a bundle.

    Attributes:
        manifest: the bundle's manifest without its probes.
        model_card: the text of MODEL_CARD.md.
        allow_uncontracted: whether decisions are given although a contract is not met.
    """

    manifest: BundleManifest
    model_card: str
    allow_uncontracted: bool = False

    @property
    def key(self) -> str:
        """What tells it from another: two replicas may decide differently with one bundle."""
        return f"{self.manifest.version} {self.allow_uncontracted}"

    @property
    def decider(self) -> Decider:
        """What decides on several images together, as the classifier decides on each."""
        return Decider(self.manifest, self.allow_uncontracted)

    @property
    def contract_sentence(self) -> str:
        """The contract for one image in words."""
        return self.manifest.operating_point.contract.sentence(self.manifest.task)

    @property
    def several_images_sentence(self) -> str | None:
        """The contract for several images of one lesion in words; None if there is none."""
        point = self.manifest.several_images
        return None if point is None else point.contract.sentence(self.manifest.task)
