"""Training: from a prepared data set to a trained network."""
