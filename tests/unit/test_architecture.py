"""What holds for the whole code base."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from melanoma.task import TASKS

ROOT = Path(__file__).parents[2]
PACKAGES = ("melanoma", "ray_jobs", "serve", "tune")


def test_the_command_imports_lazily() -> None:
    """`melanoma --help` is instant because nothing heavy is imported before a sub-command needs
    it."""
    seen = "import sys, ray_jobs.cli; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", seen], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "ray", "pandas", "numpy", "pyarrow", "pydantic", "timm"} & set(loaded)


def test_workers_of_prepare_do_not_load_torch() -> None:
    """A worker decodes thousands of images in the time that torch takes to load."""
    seen = "import sys, ray_jobs.executor, melanoma.data.decoding; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", seen], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "timm", "scipy", "sklearn", "onnxruntime", "ray.train"} & set(loaded)


OF_CLASSES = {
    "melanoma/task.py",  # the built-in tasks
    "melanoma/data/diagnoses.py",  # the table of spellings
    "melanoma/data/phantom",  # draws these lesions
}


def test_no_class_is_known_by_name() -> None:
    """An eight-class, a binary or another target is data: only the files above may name a class."""
    names = {name for task in TASKS.values() for name in task.classes}
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno} names {node.value!r}"
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        if not any(str(path.relative_to(ROOT)).startswith(allowed) for allowed in OF_CLASSES)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in names
    ]
    wrong += [
        f"{path.relative_to(ROOT)} names {name}"
        for path in sorted((ROOT / "serve" / "page").iterdir())
        for name in names
        if path.suffix != ".jpg" and re.search(rf"['\".]{name}\b", path.read_text())
    ]
    assert not wrong, "\n".join(wrong)


def test_layers_are_kept() -> None:
    """Contracts in pyproject.toml, checked by import-linter."""
    found = subprocess.run(
        [Path(sys.executable).with_name("lint-imports")], cwd=ROOT, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout


def test_every_module_of_the_science_has_a_layer() -> None:
    """A module in no layer could import anything unnoticed."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = (part["layers"] for part in contracts["contracts"] if part["type"] == "layers")
    named = [name for layer in layers for name in layer.split(" | ")]
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "melanoma").rglob("*.py")
        if path.name != "__init__.py"
    ]
    without = [
        module
        for module in sorted(modules)
        if not any(module == name or module.startswith(f"{name}.") for name in named)
    ]
    assert not without


def test_actions_are_pinned_by_commit() -> None:
    """A tag can be moved; what a workflow may sign and push with must not change unseen."""
    workflows = sorted((ROOT / ".github/workflows").glob("*.yml"))
    used = re.findall(r"uses: *(.*)", "".join(path.read_text() for path in workflows))
    assert used
    assert [line for line in used if not re.fullmatch(r"\S+@[0-9a-f]{40} # v[\d.]+", line)] == []
