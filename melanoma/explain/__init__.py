"""Explanations of predictions: Grad-CAM, guided maps and overlays."""
