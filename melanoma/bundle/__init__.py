"""The deployable: its manifest, packing, verified loading and prediction."""
