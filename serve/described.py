"""The description of a bundle that the classifier sends to the ingress."""

import dataclasses

from melanoma.bundle.manifest import BundleManifest


@dataclasses.dataclass(frozen=True)
class Described:
    """What the ingress needs to know of a bundle.

    Attributes:
        manifest: the bundle's manifest without its probes.
        model_card: the text of MODEL_CARD.md.
    """

    manifest: BundleManifest
    model_card: str

    @property
    def contract_sentence(self) -> str:
        """The contract in words."""
        return self.manifest.operating_point.contract.sentence(self.manifest.task)
