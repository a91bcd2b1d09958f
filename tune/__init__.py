"""Search for loss settings: Ray Tune over gamma and class weights, with grouped folds."""
