"""Every overlay climbs the ladder of tests/manifests.py without a finding."""

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import ray
import yaml

from serve.environment import ENVIRONMENT
from serve.render import patch
from tests import manifest_rules as rules
from tests import manifests
from tests.manifests import K8S, OVERLAYS, Document, cluster_of, of_kind
from tests.operator_rules import operator_findings

ROOT = K8S.parent
RAY_KINDS = ("RayService", "RayJob")


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> list[Document]:
    return manifests.render(request.param)


def _ray(documents: list[Document]) -> list[Document]:
    return [document for kind in RAY_KINDS for document in of_kind(documents, kind)]


def test_there_is_an_overlay_for_each_cluster_and_purpose() -> None:
    both = {
        f"{cluster}/{purpose}"
        for cluster in ("cpu", "gpu")
        for purpose in ("serve", "train", "tune")
    }
    assert both | {"cpu/prepare", "cpu/evaluate"} == set(OVERLAYS)


@pytest.mark.parametrize(
    "path", sorted(K8S.rglob("*.yaml")), ids=lambda path: str(path.relative_to(K8S))
)
def test_files_are_tidy(path: Path) -> None:
    assert manifests.yamllint_findings(path.read_text()) == []


def test_core_kinds_follow_their_schemas(overlay: list[Document]) -> None:
    assert list(manifests.core_findings(overlay)) == []


def test_kuberay_kinds_follow_their_definitions(overlay: list[Document], crds: Path) -> None:
    assert _ray(overlay)
    assert list(manifests.crd_findings(overlay, crds)) == []


def test_every_custom_kind_follows_its_definition(
    overlay: list[Document], crds: Path, more_crds: Path
) -> None:
    known = manifests.defined_kinds(crds) | manifests.defined_kinds(more_crds)
    assert manifests.custom_kinds(overlay) <= known
    assert list(manifests.crd_findings(overlay, more_crds)) == []


def test_the_operator_takes_them(overlay: list[Document]) -> None:
    assert [found for document in _ray(overlay) for found in operator_findings(document)] == []


def test_nothing_tries_a_job_again(overlay: list[Document]) -> None:
    assert [
        found for job in of_kind(overlay, "RayJob") for found in rules.retry_findings(job)
    ] == []


def test_pods_have_no_rights_they_do_not_need(overlay: list[Document]) -> None:
    assert [
        found for document in _ray(overlay) for found in rules.hardening_findings(document)
    ] == []


def test_what_is_named_is_there(overlay: list[Document]) -> None:
    told = set(
        re.findall(r"create secret \S+ (\S+)", (K8S.parent / "docs" / "kubernetes.md").read_text())
    )
    assert list(rules.reference_findings(overlay, given=told)) == []


@pytest.mark.parametrize("name", ["cpu/serve", "gpu/serve"])
def test_the_serve_config_is_strict_and_fits(name: str) -> None:
    (service,) = of_kind(manifests.render(name), "RayService")
    assert list(rules.serve_findings(service)) == []


@pytest.mark.parametrize("name", ["cpu/serve", "gpu/serve"])
def test_what_talks_to_each_other_can(name: str) -> None:
    assert list(rules.wiring_findings(manifests.render(name))) == []


def test_what_is_public_goes_through_the_gateway_and_nothing_of_rays(
    serving: list[Document],
) -> None:
    from serve.ingress import app

    (route,) = of_kind(serving, "HTTPRoute")
    paths = [match["path"] for rule in route["spec"]["rules"] for match in rule["matches"]]

    def passes(asked: str) -> bool:
        return any(
            asked == path["value"]
            or (path["type"] == "PathPrefix" and asked.startswith(f"{path['value']}/"))
            for path in paths
        )

    ours = {
        *app.openapi()["paths"],
        "/",
        "/docs",
        "/docs/assets/x",
        "/page/page.js",
        "/openapi.json",
    }
    assert {"/v1/predict", "/v2/models/melanoma/infer"} <= ours
    assert [path for path in ours if not passes(path)] == []
    assert not any(
        passes(path) for path in ("/-/routes", "/-/healthz", "/metrics", "/v10", "/api/jobs")
    )


@pytest.mark.parametrize("name", ["cpu/serve", "gpu/serve"])
def test_the_serve_config_has_one_source(name: str) -> None:
    folder = K8S / "overlays" / name
    assert (folder / "serve-config.yaml").read_text() == patch(folder), "run `make manifests`"


def test_ray_is_the_one_that_is_locked(overlay: list[Document]) -> None:
    locked = re.search(
        r"^ray(?:\[[^\]]*\])?==(\S+)", (K8S / "requirements.lock").read_text(), re.MULTILINE
    )
    assert locked is not None
    assert (
        {cluster_of(document)["rayVersion"] for document in _ray(overlay)}
        == {locked[1]}
        == {ray.__version__}
    )


def test_pods_start_ray_as_the_service_wants_it(overlay: list[Document]) -> None:
    (found,) = [
        d["data"]
        for d in of_kind(overlay, "ConfigMap")
        if d["metadata"]["name"].startswith("melanoma-ray")
    ]
    assert ENVIRONMENT.items() <= found.items()


def test_a_job_is_a_command_of_ours(overlay: list[Document]) -> None:
    from ray_jobs.arguments import build_parser

    for job in of_kind(overlay, "RayJob"):
        python, dash_m, module, *words = job["spec"]["entrypoint"].split()
        assert (python, dash_m, module) == ("python", "-m", "ray_jobs.cli")
        args = build_parser({name: lambda _: 0 for name in _COMMANDS}, "0").parse_args(words)  # type: ignore[misc]
        assert all(
            str(path).startswith("s3://")
            for name, path in vars(args).items()
            if name in ("source", "dataset", "bundle", "data", "out")
        )


_COMMANDS = (
    "phantom",
    "prepare",
    "describe",
    "config",
    "train",
    "tune",
    "evaluate",
    "score",
    "predict",
    "serve",
    "verify",
)


def test_the_serving_image_keeps_all_that_serving_imports() -> None:
    """And nothing of what it leaves out is imported, anywhere below serve/."""
    text = (K8S / "Dockerfile").read_text()
    listed = re.search(r"for part in (.*?);", text, re.DOTALL)
    assert listed is not None
    left_out = {part for part in listed[1].split() if part != "\\"}
    assert all((ROOT / part).exists() for part in left_out)
    needed = {str(path.relative_to(ROOT)) for path in _closure("serve")}
    assert {"melanoma/bundle/predictor.py", "serve/ingress.py"} <= needed
    assert not {
        path
        for path in needed
        if any(path == part or path.startswith(f"{part}/") for part in left_out)
    }


def _closure(package: str) -> set[Path]:
    """Return every file of ours that a package imports, directly or not."""
    found: set[Path] = set()
    waiting = [f"{package}.{path.stem}" for path in (ROOT / package).glob("*.py")]
    while waiting:
        name = waiting.pop()
        path = ROOT.joinpath(*name.split(".")).with_suffix(".py")
        if path.is_file() and path not in found:
            found.add(path)
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and node.module:
                    waiting += [
                        node.module,
                        *(f"{node.module}.{alias.name}" for alias in node.names),
                    ]
                elif isinstance(node, ast.Import):
                    waiting += [alias.name for alias in node.names]
    return found


def test_the_dockerfile_is_clean() -> None:
    assert manifests.hadolint_findings((K8S / "Dockerfile").read_text()) == ""


def test_alert_rules_are_understood_by_prometheus(serving: list[Document], tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not here (it comes with prometheus)")
    (rules,) = of_kind(serving, "PrometheusRule")
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules["spec"]))
    done = subprocess.run(
        [promtool, "check", "rules", tmp_path / "rules.yaml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
