"""From a folder of images to folds."""
