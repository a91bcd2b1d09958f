"""Prints the result of a command: as text, or with --json as one JSON object."""

import argparse
import json
import os
from typing import Any

MARK = "MELANOMA_RESULT_MARK"
"""Environment variable of a job: the line before and after the result in the job's log."""


def print_result(args: argparse.Namespace, value: dict[str, Any], text: str) -> None:
    """Print a result: `value` with --json, otherwise `text`."""
    result, mark = json.dumps(value) if args.json else text, os.environ.get(MARK)
    # The log of a job holds the result too. It is written at once and on its own lines, because
    # other processes write to the same log. `end` is empty because Ray leaves stdout unbuffered, so
    # that `print` would write the end separately.
    text = f"\n{mark}\n{result}\n{mark}\n" if mark else f"{result}\n"
    print(text, end="", flush=True, file=args.stdout)
