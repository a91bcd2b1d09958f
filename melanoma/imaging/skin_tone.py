"""An estimate of the skin's tone from one image: the individual typology angle (ITA).

The angle is that of Chardon, Cretois, Hourseau, Skin Colour Typology and Suntanning Pathways, 1991.
A dermatoscope's light and its camera's white balance move it, so it serves to look at groups of
images, never at one person.
"""

import numpy as np
from PIL import Image, ImageCms

from melanoma.arrays import Uint8Array
from melanoma.imaging.descriptors import without_padding

BANDS = {
    "very light": 55.0,
    "light": 41.0,
    "intermediate": 28.0,
    "tan": 10.0,
    "brown": -30.0,
    "dark": -180.0,
}
"""Band -> its least angle, degrees, from the lightest down."""
_DARKEST, _LIGHTEST = 15.0, 97.0
"""Lightness below is the rim of the dermatoscope or hair, above it is glare."""
_LEAST_PIXELS = 200
_LEVELS = 255 / 100
"""Steps of 8 bits in one unit of lightness."""
_TO_LAB = ImageCms.buildTransform(
    ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
)


def skin_tone(stored: Uint8Array) -> float:
    """Return the ITA of the skin around the lesion, degrees; NaN where too little skin is seen.

    The skin is what is lighter than Otsu's threshold on the lightness.

    Args:
        stored: ``(H, W, 3)`` uint8; its padding is left out.
    """
    image = Image.fromarray(without_padding(stored))
    found = ImageCms.applyTransform(image, _TO_LAB)
    assert found is not None  # only with inPlace
    # Whole numbers of 8 bits, in which medians and histograms take a fraction of the time.
    lab = np.asarray(found)
    lightness, yellow = np.ascontiguousarray(lab[..., 0]), lab[..., 2].view(np.int8)
    usable = (lightness > _DARKEST * _LEVELS) & (lightness < _LIGHTEST * _LEVELS)
    if usable.sum() < _LEAST_PIXELS:
        return float("nan")
    skin = usable & (lightness > _otsu(lightness[usable]))
    if skin.sum() < _LEAST_PIXELS:
        return float("nan")
    median_lightness = np.median(lightness[skin]) / _LEVELS
    return float(np.degrees(np.arctan2(median_lightness - 50, np.median(yellow[skin]))))


def band_of(ita: float) -> str:
    """Return the band of an angle, degrees; "" if it is NaN."""
    return next((name for name, least in BANDS.items() if ita > least), "")


def _otsu(values: Uint8Array) -> int:
    """Return the threshold between the two groups of values that differ most (Otsu, 1979)."""
    counts = np.bincount(values, minlength=256)
    share, levels = counts / counts.sum(), np.arange(256)
    below, mean_below = np.cumsum(share), np.cumsum(share * levels)
    apart = below * (1 - below)
    between = np.zeros(256)
    mixed = apart > 0
    between[mixed] = (mean_below[-1] * below - mean_below)[mixed] ** 2 / apart[mixed]
    return int(between.argmax())
