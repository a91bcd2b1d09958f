"""A head on embeddings from outside, in place of a network on images."""

from torch import Tensor, nn

from melanoma.errors import SettingError

BACKBONE = "embeddings"
"""The name that stands for the model outside."""
NO_IMAGES = (
    "This bundle judges embeddings of a model outside, not images. Pass --embeddings TABLE to"
    " `melanoma evaluate` or `melanoma score`."
)


class EmbeddingHead(nn.Module):
    """A linear layer behind timm's interface of features and head.

    Its feature maps are embeddings, ``(N, F, 1, 1)``; it has no features of images.

    Args:
        size: F, the length of an embedding.
        num_classes: number of outputs.
    """

    def __init__(self, size: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes, self.num_features = num_classes, size
        self.fc = nn.Linear(size, num_classes)

    def get_classifier(self) -> nn.Linear:
        """Return the linear layer."""
        return self.fc

    def forward_features(self, images: Tensor) -> Tensor:
        """Refuse images.

        Raises:
            SettingError: always.
        """
        raise SettingError(NO_IMAGES)

    def forward_head(self, feature_map: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits ``(N, C)`` of embeddings ``(N, F, 1, 1)``, or the embeddings."""
        vectors = feature_map.flatten(1)
        logits: Tensor = vectors if pre_logits else self.fc(vectors)
        return logits
