"""A demonstration from images to an answered request. It runs the ordinary `melanoma` commands.

It starts its own Ray and ignores RAY_ADDRESS. It writes to a new folder and serves on a free port.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from melanoma.data.dataset import open_prepared
from melanoma.data.records import read_source
from ray_jobs.progress import say

# Without a proxy from the environment, because the server is on this machine.
_DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
NEEDED_GB = 5
READY_SECONDS = 180.0
# With these settings the contract of the phantom data is met in a few minutes on two cores.
PHANTOM_TRAINING = [
    "--preset", "cpu_quick", "--set", "optim.epochs=6",
]  # fmt: skip
PHANTOM_LESIONS = 1400
REAL_TRAINING = ["--preset", "cpu_quick"]


def main() -> int:
    """Run the demonstration. At a terminal it keeps serving, unless DEMO_EXIT=1."""
    parser = argparse.ArgumentParser(
        prog="make demo", description="images -> bundle -> an answer over HTTP"
    )
    parser.add_argument("--data", type=Path, help="SOURCE folder to use instead of phantom data")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs") / f"demo-{time.strftime('%Y%m%d-%H%M%S')}",
        help="folder to write (default runs/demo-TIME)",
    )
    args = parser.parse_args()
    os.environ.pop("RAY_ADDRESS", None)
    args.out.mkdir(parents=True, exist_ok=True)
    free_gb = shutil.disk_usage(args.out).free / 1e9
    if free_gb < NEEDED_GB:
        say(
            f"melanoma: {args.out} must have {NEEDED_GB} GB of free disk space; it has"
            f" {free_gb:.1f} GB. Make room, or pass another --out."
        )
        return 2
    source, bundle = _train(args.data, args.out)
    stay = sys.stdout.isatty() and os.environ.get("DEMO_EXIT") != "1"
    image, dx = _unseen_image(source, args.out / "dataset", args.out / "evidence")
    with _serving(bundle) as (server, address):
        answer = _ask(address, image)
        _save(answer, args.out)
        _show(answer, f"{image.name} (test, labelled {dx})", args.out)
        if stay:
            say(
                f"\nserving at {address} (stop with Ctrl-C). Try:\n  curl --data-binary @{image}"
                f" {address}/v1/predict"
            )
            with contextlib.suppress(KeyboardInterrupt):
                server.wait()
    return 0


def _train(data: Path | None, out: Path) -> tuple[Path, Path]:
    """Prepare the data, train and evaluate; return the SOURCE folder and the bundle.

    Args:
        data: SOURCE folder; None makes phantom data.
        out: folder to write.
    """
    prepared, runs = out / "dataset", out / "runs"
    if data is None:
        source = out / "phantom"
        _melanoma("data", "phantom", source, "--lesions", PHANTOM_LESIONS)
        _melanoma(
            "data", "prepare", source, prepared, "--size", "128", "--calibration-fraction", "0.25"
        )
        training = PHANTOM_TRAINING
    else:
        source = data
        pairs = data / "known_duplicates.csv"
        _melanoma(
            "data",
            "prepare",
            source,
            prepared,
            *(["--same-lesion", pairs] if pairs.is_file() else []),
        )
        training = REAL_TRAINING
    # The contract of the phantom data must be met. With real images an unmet or refuted contract is
    # a finding, and the demonstration continues.
    required, allowed = (["--require-contract"], (0,)) if data is None else ([], (0, 1))
    _melanoma(
        "train",
        prepared,
        runs,
        *training,
        "--workers",
        "2",
        "--name",
        "demo",
        *required,
        allowed=allowed,
    )
    bundle = runs / "demo" / "bundle"
    _melanoma("evaluate", bundle, prepared, out / "evidence", allowed=allowed)
    _melanoma("bundle", "verify", bundle, allowed=allowed)
    return source, bundle


def _unseen_image(source: Path, prepared: Path, evidence: Path) -> tuple[Path, str]:
    """Return an image of the test split and its label.

    It is one that the bundle assesses, of a target class if there is one.
    """
    data = open_prepared(prepared)
    decisions = pd.read_parquet(evidence / "predictions.parquet").set_index("image_id")["decision"]
    test = data.rows("test")
    assessed = (test["image_id"].map(decisions) != "cannot_assess").to_numpy()
    test = test[assessed] if assessed.any() else test
    row = test.sort_values("dx", key=lambda dx: ~dx.isin(data.task.targets), kind="stable").iloc[0]
    paths = read_source(source, data.task).records.set_index("image_id")["path"]
    return Path(paths[row["image_id"]]), str(row["dx"])


def _melanoma(*words: object, allowed: tuple[int, ...] = (0,)) -> None:
    """Print and run one `melanoma` command. Exit if its exit code is not allowed."""
    say(f"\n$ melanoma {' '.join(map(str, words))}")
    started = time.monotonic()
    code = subprocess.run(
        [sys.executable, "-m", "ray_jobs.cli", *map(str, words)], check=False
    ).returncode
    say(f"  ({time.monotonic() - started:.0f} s)")
    if code not in allowed:
        sys.exit(code)


@contextlib.contextmanager
def _serving(bundle: Path) -> Iterator[tuple["subprocess.Popen[bytes]", str]]:
    """Serve a bundle on a free port while the block runs; yield the process and its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    say(f"\n$ melanoma serve {bundle} --port {port}")
    server = subprocess.Popen(
        [sys.executable, "-m", "ray_jobs.cli", "serve", str(bundle), "--port", str(port)]
    )
    try:
        _wait_ready(server, f"http://127.0.0.1:{port}")
        yield server, f"http://127.0.0.1:{port}"
    finally:
        server.send_signal(signal.SIGINT)
        try:
            server.wait(90)
        except subprocess.TimeoutExpired:
            server.kill()


def _wait_ready(server: "subprocess.Popen[bytes]", address: str) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        with (
            contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError),
            _DIRECTLY.open(f"{address}/readyz", timeout=5),
        ):
            return
        time.sleep(0.5)
    sys.exit("melanoma: The server did not become ready. Run `melanoma serve` by hand to see why.")


def _ask(address: str, image: Path) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{address}/v1/predict?explain=grad_cam", image.read_bytes(), {"Content-Type": "image/jpeg"}
    )
    with _DIRECTLY.open(request, timeout=60) as response:
        answer: dict[str, Any] = json.loads(response.read())
    return answer


def _save(answer: dict[str, Any], out: Path) -> None:
    for name in ("heatmap", "overlay"):
        (out / f"{name}.png").write_bytes(b64decode(answer["explanation"].pop(f"{name}_png")))
    (out / "answer.json").write_text(json.dumps(answer, indent=2) + "\n")


def _show(answer: dict[str, Any], image: str, out: Path) -> None:
    score = sum(answer["probabilities"][name] for name in answer["contract"]["targets"])
    print(
        f"\n{image}: {answer['decision']}, score {score:.3f}, threshold {answer['threshold']:.3f}"
    )
    print(f"contract: {answer['contract']['status']}\nevidence: {out / 'evidence' / 'report.html'}")
    print(
        f"heatmap:  {out / 'overlay.png'} (coarse cells that raised the score; they do not mark"
        " disease)"
    )
    print(f"answer:   {out / 'answer.json'}\n{answer['disclaimer']}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
