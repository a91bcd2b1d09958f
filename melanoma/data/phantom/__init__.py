"""Synthetic dermoscopy with true lesion masks: the embedded data set."""
