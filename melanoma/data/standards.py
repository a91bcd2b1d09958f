"""How a diagnosis was made, what kind an image is, and the skin of a patient, as tables say it."""

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


def skin_tone_class(text: str) -> str:
    """Return MILK10k's skin tone as "tone 0" (very dark) to "tone 5" (very light), or "".

    It runs against Fitzpatrick's skin types and was made not to be taken for them, so it keeps a
    name of its own.
    """
    said = text.strip().removesuffix(".0")
    return f"tone {said}" if said in {"0", "1", "2", "3", "4", "5"} else ""


def is_clinical(image_type: str) -> bool:
    """Return whether the ISIC Archive calls an image clinical, taken without a dermatoscope.

    Args:
        image_type: such as ``dermoscopic``, ``clinical: close-up`` or ``clinical: overview``.
    """
    return image_type.strip().casefold().startswith("clinical")
