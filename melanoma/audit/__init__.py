"""Looks for leaks and shortcuts in a prepared data set, before anything is trained on it."""
