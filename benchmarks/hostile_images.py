"""Measures the CPU time and memory for decoding each hostile file, each in its own process.

`--code DIR` measures another checkout.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.hostile_files import HOSTILE, LARGEST

LIMIT_SECONDS = 120
_PROGRAM = """
import json, resource, sys, time
from melanoma.imaging.decode import check_content, decode_image
data = sys.stdin.buffer.read()
def memory(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before, started = memory(), time.process_time()
try:
    image = decode_image(data)
    check_content(image)
    answer = "200"
except Exception as error:
    answer = f"{getattr(error, 'status', 500)} {getattr(error, 'code', type(error).__name__)}"
print(json.dumps({"cpu_seconds": time.process_time() - started, "added_mb": memory() - before,
"answer": answer}))
"""


def measured(data: bytes, code: Path) -> dict[str, float | str]:
    """Decode a file with the code of a checkout, and return the cost and the answer."""
    environment = os.environ | {"PYTHONPATH": str(code), "PYTHONWARNINGS": "ignore"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM],
            input=data,
            env=environment,
            cwd=code,
            capture_output=True,
            timeout=LIMIT_SECONDS,
            check=True,
        )
    except subprocess.TimeoutExpired:
        return {"cpu_seconds": LIMIT_SECONDS, "added_mb": 0.0, "answer": "given up"}
    found: dict[str, float | str] = json.loads(done.stdout)
    return found


def main() -> None:
    """Measure all files and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--code",
        type=Path,
        default=Path(__file__).parents[1],
        help="checkout whose decode_image is measured",
    )
    parser.add_argument("--only", default="", help="measure only files whose name contains this")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    rows = []
    if not arguments.json:
        print(f"{'file':52}{'MB':>7}{'CPU s':>8}{'+MB':>7}  answer")
    for name, make in {**HOSTILE, **LARGEST}.items():
        if arguments.only not in name:
            continue
        data = make()
        rows.append({"file": name, "bytes": len(data), **measured(data, arguments.code)})
        if not arguments.json:
            row = rows[-1]
            print(
                f"{name:52}{len(data) / 1e6:7.2f}{row['cpu_seconds']:8.2f}{row['added_mb']:7.0f} "
                f" {row['answer']}",
                flush=True,
            )
    if arguments.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
