"""What the documentation copies from the code, because readers want it there."""

import dataclasses
import itertools
import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from melanoma.data.phantom.config import PhantomConfig
from melanoma.data.prepare_config import PrepareConfig
from melanoma.evidence.sequential import chances_of_verdict
from melanoma.io.files import sha256_of
from melanoma.task import DEFAULT_TASK, TASKS
from ray_jobs.arguments import DONE, FOUND, NAMED_OR_PATH, contract_code
from ray_jobs.cli import build_parser, main
from tests.clusters import BIN
from tests.manifests import of_kind, pod_specs

ROOT = Path(__file__).parents[2]


def test_the_table_of_settings_is_that_of_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--preset", "cpu_quick", "--markdown"]) == DONE
    assert capsys.readouterr().out in (ROOT / "docs" / "settings.md").read_text()


def test_config_prints_every_setting_with_its_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--set", "loss.gamma=2"]) == DONE
    lines = capsys.readouterr().out.splitlines()
    assert any(re.match(r"loss\.gamma = 2\.0 +0 or in \[1, 5\]", line) for line in lines)
    assert all(len(line.split("  ", 1)[1].strip()) > 10 for line in lines)


def test_the_command_knows_the_tasks_by_name() -> None:
    assert NAMED_OR_PATH["task"] == tuple(TASKS)


@pytest.mark.parametrize(
    ("words", "config"),
    [(["data", "prepare", "a", "b"], PrepareConfig()), (["data", "phantom", "a"], PhantomConfig())],
)
def test_the_command_has_the_defaults_of_the_code(
    words: list[str], config: PrepareConfig | PhantomConfig
) -> None:
    """The parser must not import the code, so it repeats the defaults for --help."""
    args = vars(build_parser().parse_args(words))
    options = {"folds": "num_folds", "lesions": "num_lesions"}
    given = {options.get(name, name): value for name, value in args.items()}
    defaults = dataclasses.asdict(config) | ({"task": DEFAULT_TASK} if "task" in given else {})
    assert given.items() >= defaults.items()


def test_the_tested_versions_are_those_of_the_lock() -> None:
    locked = dict(re.findall(r"(?m)^([a-z0-9-]+)==(\S+)", (ROOT / "requirements.lock").read_text()))
    bounds = {
        requirement.name: str(requirement.specifier)
        for requirement in map(
            Requirement,
            tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"],
        )
    }
    rows = re.findall(
        r"(?m)^\| ([a-z-]+) \| (\d\S*) \| `(\S+)` \|$", (ROOT / "docs" / "index.md").read_text()
    )
    assert len(rows) >= 5
    for name, tested, accepted in rows:
        assert locked[name] == tested
        assert set(bounds[name].split(",")) == set(accepted.split(","))


def test_the_readme_of_kubernetes_pins_the_bundle_of_its_image(tmp_path: Path) -> None:
    """Its command, with what it reads and without sending it to a cluster."""
    text = (ROOT / "k8s" / "README.md").read_text()
    found = re.search(r"kubectl kustomize (.*?) \| kubectl apply -f -", text, re.DOTALL)
    assert found is not None
    (tmp_path / "manifest.json").write_text("{}")
    rendered = subprocess.run(
        ["bash", "-c", f"BUNDLE={tmp_path}; kubectl kustomize {found[1]}"],
        cwd=ROOT, env=os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"},
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    (service,) = of_kind(list(yaml.safe_load_all(rendered)), "RayService")
    (app,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    assert app["args"]["manifest_sha256"] == sha256_of(tmp_path / "manifest.json")
    (image,) = {
        container["image"] for spec in pod_specs(service) for container in spec["containers"]
    }
    assert f"-t {image} " in text
    assert f"load docker-image {image}\n" in text


def test_the_chances_to_notice_a_broken_promise_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "site.md").read_text()
    rows = re.findall(r"(?m)^\| (\d+) \| (\S+) \| (\S+) \| (\S+) \|$", text)
    assert len(rows) == 4
    for place, sensitivity in enumerate((0.8, 0.85, 0.9), 1):
        found = chances_of_verdict("broken", sensitivity, target_sensitivity=0.9)
        chances = list(itertools.islice(found, int(rows[-1][0])))
        for row in rows:
            assert row[place] == f"{chances[int(row[0]) - 1]:.2f}"


def test_no_figure_is_left_out() -> None:
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        assert not re.search(r"<!-- [A-Z]|TODO|FIXME|\b(LINES|SIZES)\b", page.read_text()), (
            page.name
        )


@pytest.mark.parametrize(
    ("required", "status", "expected"),
    [
        (True, "met", DONE),
        (True, "unmet", FOUND),
        (False, "unmet", DONE),
    ],
)
def test_an_unmet_contract_fails_a_command_that_requires_it(
    required: bool, status: str, expected: int
) -> None:
    import argparse

    assert contract_code(argparse.Namespace(require_contract=required), status) == expected


def test_the_readme_is_short_and_its_links_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
