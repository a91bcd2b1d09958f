"""Searches the loss: Ray Tune over gamma and class weights, under grouped cross-validation."""
