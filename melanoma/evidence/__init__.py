"""The evidence for a bundle: metrics, calibration, the operating point and its report."""
