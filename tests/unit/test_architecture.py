import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FORBIDDEN = {
    "melanoma": {"ray", "fastapi", "starlette", "ray_jobs", "tune", "serve"},
    "ray_jobs": {"fastapi", "starlette", "tune", "serve"},
    "tune": {"ray_jobs", "serve", "fastapi", "starlette"},
    "serve": {"ray_jobs", "tune"},
}
COMPOSITION_ROOT = ROOT / "ray_jobs" / "cli.py"


def _imports(path: Path) -> list[tuple[int, str, bool]]:
    """Return (line, module, whether at module level) of every import of a file."""
    tree = ast.parse(path.read_text())
    top = set(map(id, tree.body))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            found.append((node.lineno, node.module or "", id(node) in top))
    return found


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_imports_run_one_way(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in sorted((ROOT / package).rglob("*.py"))
        if path != COMPOSITION_ROOT
        for line, module, _ in _imports(path)
        if module.split(".")[0] in FORBIDDEN[package]
    ]
    assert not wrong, "\n".join(wrong)


def test_the_command_imports_lazily() -> None:
    """`melanoma --help` is instant because nothing heavy is imported before a sub-command needs it."""
    seen = "import sys, ray_jobs.cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", seen], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "ray", "pandas", "numpy", "pyarrow", "pydantic", "timm"} & set(loaded)
