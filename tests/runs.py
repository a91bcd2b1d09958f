"""Small training runs in a process, and a Ray, of their own, as a person starts them: watched,
killed, compared."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from melanoma.data.dataset import PreparedData
from melanoma.io.storage import AnyPath
from tests.clusters import wait_for

SETTINGS = [
    "--preset",
    "smoke",
    "--workers",
    "2",
    "--set",
    "optim.epochs=4",
    "--set",
    "data.input_height=48",
    "--set",
    "data.input_width=64",
    "--set",
    "optim.batch_size=16",
]


@dataclasses.dataclass
class Run:
    """One run of `melanoma train`.

    Attributes:
        data: what it learns from.
        out: OUT as the command is given it.
        seen: OUT as this process reads it, where that is another address.
        settings: of the command line.
    """

    data: PreparedData
    out: str | Path
    seen: AnyPath
    settings: list[str] = dataclasses.field(default_factory=lambda: SETTINGS)

    @property
    def folder(self) -> AnyPath:
        return self.seen / "smoke"

    def start(
        self, *more: str, log: Path | None = None, **environment: str
    ) -> "subprocess.Popen[bytes]":
        """Start it, or start it again; its stderr goes to a file, where one is named."""
        command = [
            sys.executable,
            "-m",
            "ray_jobs.cli",
            "train",
            str(self.data.folder),
            str(self.out),
            *self.settings,
            *more,
        ]
        if log is None:
            return subprocess.Popen(command, start_new_session=True, env=os.environ | environment)
        with log.open("wb") as file:
            return subprocess.Popen(
                command, start_new_session=True, env=os.environ | environment, stderr=file
            )

    def finish(self, *more: str) -> None:
        """Run it to its end, which must be a good one."""
        assert self.start(*more).wait(300) == 0

    def history(self) -> list[dict[str, Any]]:
        """Return its rows so far, without how long things took."""
        path = self.folder / "history.jsonl"
        rows = (
            [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
        )
        return [
            {key: value for key, value in row.items() if not key.endswith("_seconds")}
            for row in rows
        ]

    def worker(self) -> int:
        """Return the process of the training worker that writes, or 0 if there is none:
        progress.json names it."""
        path = self.folder / "progress.json"
        pid = int(json.loads(path.read_text())["pid"]) if path.is_file() else 0
        return pid if Path(f"/proc/{pid}").exists() else 0

    def kill(self, process: "subprocess.Popen[bytes]") -> None:
        """Kill the driver; what is left of its Ray dies with it."""
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        wait_for(lambda: not self.worker())

    def ends_like(self, other: "Run") -> None:
        """Assert that both came to the same end, epoch by epoch and bit for bit."""
        assert self.history() == other.history()
        manifests = [
            json.loads((run.folder / "bundle" / "manifest.json").read_text())
            for run in (self, other)
        ]
        assert (
            manifests[0]["files"]["model.safetensors"] == manifests[1]["files"]["model.safetensors"]
        )
