"""What may be claimed of a kind of heatmap. Imports nothing, because every manifest reads it."""

from typing import Literal

Claim = Literal["none", "supported"]
"""Whether a scorecard supports that a kind of heatmap marks lesions."""
