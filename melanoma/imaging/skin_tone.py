"""An estimate of the skin's tone from one image: the individual typology angle (ITA).

The angle is that of Chardon, Cretois, Hourseau, Skin Colour Typology and Suntanning Pathways, 1991.
A dermatoscope's light and its camera's white balance move it, so it serves to look at groups of
images, never at one person.
"""

import numpy as np
from PIL import Image, ImageCms

from melanoma.arrays import FloatArray, Uint8Array
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
_BINS = 64
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
    lab = np.asarray(found)
    lightness = lab[..., 0].astype(np.float64) * 100 / 255
    yellow = lab[..., 2].view(np.int8).astype(np.float64)
    usable = (lightness > _DARKEST) & (lightness < _LIGHTEST)
    if usable.sum() < _LEAST_PIXELS:
        return float("nan")
    skin = usable & (lightness > _otsu(lightness[usable]))
    if skin.sum() < _LEAST_PIXELS:
        return float("nan")
    return float(np.degrees(np.arctan2(np.median(lightness[skin]) - 50, np.median(yellow[skin]))))


def band_of(ita: float) -> str:
    """Return the band of an angle, degrees; "" if it is NaN."""
    return next((name for name, least in BANDS.items() if ita > least), "")


def _otsu(values: FloatArray) -> float:
    """Return the threshold between the two groups of values that differ most (Otsu, 1979)."""
    counts, edges = np.histogram(values, _BINS)
    share, centres = counts / counts.sum(), (edges[1:] + edges[:-1]) / 2
    below, mean_below = np.cumsum(share), np.cumsum(share * centres)
    apart = below * (1 - below)
    between = np.zeros(_BINS)
    mixed = apart > 0
    between[mixed] = (mean_below[-1] * below - mean_below)[mixed] ** 2 / apart[mixed]
    return float(centres[between.argmax()])
