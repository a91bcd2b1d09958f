"""How a diagnosis was made, and the skin type of a patient, as public tables spell them."""

REFERENCE_STANDARDS = {
    "histology": ("histo", "histology", "histopathology", "histopathological", "biopsy", "true"),
    "follow_up": ("follow_up", "follow-up", "follow up", "serial imaging showing no change"),
    "consensus": ("consensus", "expert consensus", "single image expert consensus"),
    "confocal": ("confocal", "confocal microscopy with consensus dermoscopy"),
    "clinical": ("clinical", "clinical assessment only", "false"),
}
"""Reference standard -> its spellings. PAD-UFES-20 says only whether there was a biopsy."""
OTHER = "other"
_STANDARD = {text: name for name, texts in REFERENCE_STANDARDS.items() for text in texts}
_ROMAN = {"i": "1", "ii": "2", "iii": "3", "iv": "4", "v": "5", "vi": "6"}


def reference_standard(text: str) -> str:
    """Return how a diagnosis was made: a key of REFERENCE_STANDARDS, "other", or "" if blank."""
    said = text.strip().casefold()
    return _STANDARD.get(said, OTHER) if said else ""


def skin_type(text: str) -> str:
    """Return a Fitzpatrick skin type as "1" to "6", or "" if a text names none."""
    said = text.strip().casefold().removeprefix("type ").removesuffix(".0")
    said = _ROMAN.get(said, said)
    return said if said in _ROMAN.values() else ""
