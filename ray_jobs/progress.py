"""Shows progress on stderr: a bar at a terminal, plain lines elsewhere."""

import contextlib
import json
import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tqdm import tqdm

from melanoma.errors import DataError
from melanoma.io.storage import AnyPath, redacted

LINE_SECONDS, REMOTE_SECONDS = 10.0, 5.0


@contextlib.contextmanager
def counted(what: str, unit: str = "images") -> Iterator[Callable[[int, int], None]]:
    """Yield a callable (done, total) that shows the progress of a job.

    Args:
        what: name of the job.
        unit: plural name of what is counted.
    """
    if sys.stderr.isatty():
        with tqdm(desc=what, unit=f" {unit}", file=sys.stderr) as bar:

            def on_bar(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            yield on_bar
        return
    last = time.monotonic()

    def on_line(done: int, total: int) -> None:
        nonlocal last
        if done == total or time.monotonic() - last >= LINE_SECONDS:
            last = time.monotonic()
            say(f"{what}: {done} of {total} {unit}")

    yield on_line


def say(line: str) -> None:
    """Print one line to stderr; secrets in addresses are hidden."""
    print(redacted(line), file=sys.stderr, flush=True)


class _ToStderr(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


def show_log() -> None:
    """Print the log of the pipelines to stderr."""
    logger = logging.getLogger("melanoma")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.handlers = [_ToStderr()]


@contextlib.contextmanager
def training_progress(run_dir: AnyPath, name: str = "", epochs: int = 0) -> Iterator[None]:
    """Show the progress of training while the block runs.

    The workers write it to progress.json and history.jsonl in the run's folder.

    Args:
        run_dir: the folder of the run.
        name: what the run is called, if several train at once.
        epochs: of the run.
    """
    stop = threading.Event()
    thread = threading.Thread(
        target=_watch, args=(run_dir, f"{name}: " if name else "", epochs, stop), daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _watch(run_dir: AnyPath, prefix: str, epochs: int, stop: threading.Event) -> None:
    history, progress = run_dir / "history.jsonl", run_dir / "progress.json"
    shown = len(_text(history).splitlines())
    with tqdm(file=sys.stderr, unit=" steps", disable=not sys.stderr.isatty()) as bar:
        while True:
            ended = stop.wait(0.5 if isinstance(run_dir, Path) else REMOTE_SECONDS)
            if text := _text(progress):
                where = json.loads(text)
                epochs = where["epochs"]
                bar.total = where["epochs"] * where["steps"]
                bar.set_description(f"{prefix}epoch {where['epoch']}/{where['epochs']}")
                bar.update((where["epoch"] - 1) * where["steps"] + where["step"] - bar.n)
            lines = _text(history).splitlines()
            for line in lines[shown:]:
                tqdm.write(prefix + _epoch_line(json.loads(line), epochs), file=sys.stderr)
            shown = max(shown, len(lines))
            if ended:
                return


def _text(path: AnyPath) -> str:
    """Return the content of a file; empty if it is missing or its storage cannot be reached.

    The run itself reports such an error.
    """
    try:
        return path.read_text() if path.is_file() else ""
    except (OSError, DataError):
        return ""


def _epoch_line(row: dict[str, float], epochs: int) -> str:
    within = row["within_source_auroc"]
    # One source alone needs no second number.
    same = math.isnan(within) or math.isclose(within, row["auroc"])
    also = "" if same else f" ({within:.3f} within sources)"
    return (
        f"epoch {row['epoch']} of {epochs}: loss {row['loss']:.3f}, validation AUROC"
        f" {row['auroc']:.3f}{also}, specificity at 90 % sensitivity"
        f" {row['specificity_at_sensitivity_90']:.3f}, macro-F1 {row['macro_f1']:.3f},"
        f" {row['train_seconds'] + row['validation_seconds']:.0f} s"
    )
