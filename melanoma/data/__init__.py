"""From a folder of pictures to folds."""
