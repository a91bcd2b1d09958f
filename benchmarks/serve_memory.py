"""Prints the memory of each process of a running `melanoma serve`, with shared pages divided (PSS).

python -m benchmarks.serve_memory PID
"""

import sys

import psutil


def main() -> int:
    """Print the memory of each process, the largest first, and the sum."""
    command = psutil.Process(int(sys.argv[1]))
    held = [(process.memory_full_info().pss >> 20, _name(process)) for process in _family(command)]
    for megabytes, name in sorted(held, reverse=True):
        print(f"{megabytes:6} MB  {name}")
    print(f"{sum(megabytes for megabytes, _ in held):6} MB  in {len(held)} processes")
    return 0


def _family(command: psutil.Process) -> list[psutil.Process]:
    return [command, *command.children(recursive=True)]


def _name(process: psutil.Process) -> str:
    words = process.cmdline()
    title = " ".join(words).strip()
    if title.startswith("ray::"):
        return title
    if "ray_jobs.cli" in words:
        return "melanoma serve"
    return next(
        (
            word.rpartition("/")[2]
            for word in words
            if word.endswith((".py", "gcs_server", "raylet"))
        ),
        title[:60],
    )


if __name__ == "__main__":
    sys.exit(main())
