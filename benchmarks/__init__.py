"""Measurements beside peers and of costs; started as `python -m benchmarks.NAME`."""
