"""The columns of trials.parquet; a trial reports some of them to Ray Tune under the same names."""

from melanoma.evidence.objective import OBJECTIVES

SETTING, FOLD, STATUS, ERROR, EPOCHS = "setting", "fold", "status", "error", "epochs"
METRIC, LEAD = "objective", "lead"
"""The objective of a trial, and its lead over the base setting on the same fold."""
EXPECTED, DEVIATION = "expected_lead", "expected_lead_sd"
"""The expected lead of a trial's setting from all trials, and its standard deviation."""
RECORDED = (METRIC, *OBJECTIVES)
"""What a trial reports: the objective of the search, and all others for comparison."""
FINISHED, FAILED = "finished", "failed"
"""The statuses. A failed trial would fail again."""
BASE, PLAIN = "base", "plain"
"""The settings that every search trains on all folds: its base, and plain cross-entropy."""
