"""What a benchmark says of the machine on which its figures were taken."""

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import joblib
import torch

from melanoma.io.files import write_text

_SETS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "sve")
_LIBRARIES = ("ray", "torch", "timm", "onnxruntime")


def machine() -> dict[str, Any]:
    """Return the processor, its instruction sets, its cores and the versions of the libraries."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    values = {name.strip(): value.strip() for name, value in values.items()}
    flags = values.get("flags", values.get("Features", "")).split()
    return {
        "processor": values.get("model name", platform.processor() or platform.machine()),
        "instruction_sets": [name for name in _SETS if name in flags],
        "cores": joblib.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **{name: version(name) for name in _LIBRARIES},
    }


def report(name: str, figures: dict[str, Any], path: Path | None) -> None:
    """Print the figures of a benchmark as JSON, and write them if a path is given."""
    text = json.dumps({"benchmark": name, "machine": machine(), **figures}, indent=1)
    print(text)
    if path is not None:
        write_text(path, text + "\n")
