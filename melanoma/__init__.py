"""Melanoma triage: the science. Trains, evaluates and explains in one process; knows nothing of Ray, HTTP or Kubernetes."""

__version__ = "0.1.0"
