"""Measurements of cost and comparisons with other software; run `python -m benchmarks.NAME`."""
