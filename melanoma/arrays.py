"""Names for the arrays that functions take and return."""

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating]
IntArray = NDArray[np.integer]
BoolArray = NDArray[np.bool_]
Uint8Array = NDArray[np.uint8]
