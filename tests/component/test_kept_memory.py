"""Processes that train keep the memory that they free."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ray_jobs.memory import KEPT
from tests.manifests import K8S

needs_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="other C libraries have other parameters"
)
USE_AND_FREE = """
import resource, threading
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def use_and_free():
    held = [bytearray(b"x") * (100 << 20) for _ in range(25)]
def count():
    use_and_free()
    before = faults()
    for _ in range(2):
        use_and_free()
    print((faults() - before) // 50)
"""
IN_A_THREAD = "thread = threading.Thread(target=count); thread.start(); thread.join()"
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
PAGES = (100 << 20) // os.sysconf("SC_PAGESIZE")


def _pages_cleared(code: str, **environment: str) -> int:
    """Return the pages that the system clears for each allocation of 100 MiB."""
    around = {name: value for name, value in os.environ.items() if name not in KEPT}
    done = subprocess.run(
        [sys.executable, "-c", USE_AND_FREE + code],
        env=around | environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return int(done.stdout)


@needs_glibc
def test_freed_memory_is_used_again_in_every_thread() -> None:
    assert _pages_cleared(IN_A_THREAD, **KEPT) < PAGES / 10


@needs_glibc
def test_a_process_that_runs_already_keeps_its_memory_from_then_on() -> None:
    keeping = "from ray_jobs.memory import keep_memory; keep_memory(); count()"
    assert _pages_cleared(keeping) < PAGES / 10


@needs_glibc
def test_without_it_the_system_clears_every_page_again() -> None:
    """Otherwise the tests above show nothing, and the setting can go."""
    if HUGE_PAGES.is_file() and "[always]" in HUGE_PAGES.read_text():
        pytest.skip("this system clears many pages at once")
    assert _pages_cleared(IN_A_THREAD) > PAGES / 2


def test_the_image_for_training_keeps_memory_too() -> None:
    text = (K8S / "Dockerfile").read_text().split("AS train")[1]
    assert {name: re.search(rf"{name}=(\S+)", text)[1] for name in KEPT} == KEPT  # type: ignore[index]
