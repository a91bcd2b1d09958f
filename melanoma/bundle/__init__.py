"""The deployable bundle: its manifest, packing, verified loading and prediction."""
