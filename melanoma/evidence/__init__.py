"""What may be claimed: metrics, calibration, the operating point and its report."""
