"""Every overlay climbs the ladder of tests/manifests.py without a finding; for each rung a planted fault is found."""

import ast
import copy
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from yamllint import linter
from yamllint.config import YamlLintConfig

from serve.environment import ENVIRONMENT
from serve.render import patch
from tests import manifests
from tests.manifests import K8S, OVERLAYS, Document, cluster_of, of_kind

ROOT = K8S.parent
YAMLLINT = YamlLintConfig(
    "{extends: default, rules: {line-length: {max: 160}, document-start: disable, comments: {min-spaces-from-content: 1},"
    " braces: {max-spaces-inside: 1}, indentation: {indent-sequences: consistent}, octal-values: enable}}"
)
RAY_KINDS = ("RayService", "RayJob")


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> list[Document]:
    return manifests.render(request.param)


@pytest.fixture(scope="module")
def serving() -> list[Document]:
    return manifests.render("gpu/serve")


@pytest.fixture(scope="module")
def training() -> list[Document]:
    return manifests.render("cpu/train")


@pytest.fixture(scope="session")
def crds() -> Path:
    folder = Path(os.environ.get("MELANOMA_SHARED", ROOT / ".." / "shared")) / "crds"
    if not folder.is_dir():
        pytest.skip("KubeRay's definitions are not here: set MELANOMA_SHARED to the folder whose crds/ holds them")
    return folder


def _ray(documents: list[Document]) -> list[Document]:
    return [document for kind in RAY_KINDS for document in of_kind(documents, kind)]


def test_there_is_an_overlay_for_each_cluster_and_purpose() -> None:
    assert {f"{cluster}/{purpose}" for cluster in ("cpu", "gpu") for purpose in ("serve", "train", "tune")} == set(
        OVERLAYS
    )


@pytest.mark.parametrize("path", sorted(K8S.rglob("*.yaml")), ids=lambda path: str(path.relative_to(K8S)))
def test_files_are_tidy(path: Path) -> None:
    assert [str(problem) for problem in linter.run(path.read_text(), YAMLLINT)] == []


def test_core_kinds_follow_their_schemas(overlay: list[Document]) -> None:
    assert list(manifests.core_findings(overlay)) == []


def test_kuberay_kinds_follow_their_definitions(overlay: list[Document], crds: Path) -> None:
    assert _ray(overlay)
    assert list(manifests.crd_findings(overlay, crds)) == []


def test_the_operator_takes_them(overlay: list[Document]) -> None:
    assert [found for document in _ray(overlay) for found in manifests.operator_findings(document)] == []


def test_pods_have_no_rights_they_do_not_need(overlay: list[Document]) -> None:
    assert [found for document in _ray(overlay) for found in manifests.hardening_findings(document)] == []


def test_what_is_named_is_there(overlay: list[Document]) -> None:
    told = set(re.findall(r"create secret \S+ (\S+)", (K8S / "README.md").read_text()))
    assert list(manifests.reference_findings(overlay, given=told)) == []


@pytest.mark.parametrize("name", ["cpu/serve", "gpu/serve"])
def test_the_serve_config_is_strict_and_fits(name: str) -> None:
    (service,) = of_kind(manifests.render(name), "RayService")
    assert list(manifests.serve_findings(service)) == []


@pytest.mark.parametrize("name", ["cpu/serve", "gpu/serve"])
def test_the_serve_config_has_one_source(name: str) -> None:
    folder = K8S / "overlays" / name
    assert (folder / "serve-config.yaml").read_text() == patch(folder), "run `make manifests`"


def test_ray_is_the_one_that_is_locked(overlay: list[Document]) -> None:
    locked = re.search(r"^ray==(\S+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert locked is not None
    assert {cluster_of(document)["rayVersion"] for document in _ray(overlay)} == {locked[1]} == {ray.__version__}


def test_pods_start_ray_as_the_service_wants_it(overlay: list[Document]) -> None:
    (found,) = [d["data"] for d in of_kind(overlay, "ConfigMap") if d["metadata"]["name"].startswith("melanoma-ray")]
    assert ENVIRONMENT.items() <= found.items()


def test_a_job_is_a_command_of_ours(overlay: list[Document]) -> None:
    from ray_jobs.arguments import build_parser

    for job in of_kind(overlay, "RayJob"):
        python, dash_m, module, *words = job["spec"]["entrypoint"].split()
        assert (python, dash_m, module) == ("python", "-m", "ray_jobs.cli")
        args = build_parser({name: lambda _: 0 for name in _COMMANDS}, "0").parse_args(words)  # type: ignore[misc]
        assert str(args.dataset).startswith("s3://")


_COMMANDS = ("phantom", "prepare", "describe", "train", "tune", "evaluate", "predict", "serve", "verify")


def test_the_serving_image_keeps_all_that_serving_imports() -> None:
    """And nothing of what it leaves out is imported, anywhere below serve/."""
    text = (K8S / "Dockerfile").read_text()
    listed = re.search(r"for part in (.*?);", text, re.DOTALL)
    assert listed is not None
    left_out = {part for part in listed[1].split() if part != "\\"}
    assert all((ROOT / part).exists() for part in left_out)
    needed = {str(path.relative_to(ROOT)) for path in _closure("serve")}
    assert {"melanoma/predictor.py", "serve/ingress.py"} <= needed
    assert not {path for path in needed if any(path == part or path.startswith(f"{part}/") for part in left_out)}


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
                    waiting += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
                elif isinstance(node, ast.Import):
                    waiting += [alias.name for alias in node.names]
    return found


def test_the_dockerfile_is_clean() -> None:
    assert _hadolint((K8S / "Dockerfile").read_text()) == ""


def _hadolint(text: str) -> str:
    command = [Path(sys.executable).with_name("hadolint"), "--no-color", "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False).stdout


def test_alerts_and_panels_ask_for_metrics_that_exist(serving: list[Document]) -> None:
    (rules,) = of_kind(serving, "PrometheusRule")
    asked = [rule["expr"] for group in rules["spec"]["groups"] for rule in group["rules"]]
    board = json.loads((K8S / "base/serve/dashboards/melanoma.json").read_text())
    asked += [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    ours = set(re.findall(r'"(melanoma_\w+)"', (ROOT / "serve" / "metrics.py").read_text()))
    rays = {"serve_deployment_replica_healthy", "serve_deployment_queued_queries", "serve_num_http_error_requests"}
    named = {
        re.sub(r"_(total|bucket|sum|count)$", "", name) for text in asked for name in re.findall(r"ray_(\w+)", text)
    }
    assert named <= ours | rays
    assert len(named & ours) >= 4


def test_alert_rules_are_understood_by_prometheus(serving: list[Document], tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not here (it comes with prometheus)")
    (rules,) = of_kind(serving, "PrometheusRule")
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules["spec"]))
    done = subprocess.run(
        [promtool, "check", "rules", tmp_path / "rules.yaml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def _planted(documents: list[Document], kind: str, plant: Callable[[Any], object]) -> list[Document]:
    changed = copy.deepcopy(documents)
    plant(of_kind(changed, kind)[0])
    return changed


def test_an_untidy_file_is_found() -> None:
    assert list(linter.run("a: 1\na:  2\n", YAMLLINT))


@pytest.mark.parametrize(
    "plant",
    [
        lambda d: d["spec"].update(minAvailabel=1),
        lambda d: d["spec"]["selector"].update(matchLabels=7),
        lambda d: d.update(apiVersion="policy/v1beta1"),
        lambda d: d["spec"].update(maxUnavailable=d["spec"].pop("minAvailable")),
    ],
    ids=["mistyped", "wrong type", "old version", "a budget that blocks every drain"],
)
def test_a_fault_in_a_core_kind_is_found(plant: Any, serving: list[Document]) -> None:
    assert list(manifests.core_findings(_planted(serving, "PodDisruptionBudget", plant)))


@pytest.mark.parametrize(
    "plant",
    [
        lambda spec: spec["rayClusterConfig"].update(rayVersoin="2.60.0"),
        lambda spec: spec["rayClusterConfig"]["workerGroupSpecs"][0].update(minReplicas="two"),
        lambda spec: spec.update(upgradeStrategy={"type": 7}),
        lambda spec: spec["rayClusterConfig"].pop("headGroupSpec"),
    ],
    ids=["mistyped", "not a number", "wrong type", "no head"],
)
def test_a_fault_against_a_definition_is_found(plant: Any, serving: list[Document], crds: Path) -> None:
    assert list(manifests.crd_findings(_planted(serving, "RayService", lambda d: plant(d["spec"])), crds))


def test_a_fault_that_only_a_rule_in_cel_knows_is_found(training: list[Document], crds: Path) -> None:
    """The definition's schema allows both ways to delete what a job leaves; its rule allows one of them."""
    both = {
        "onSuccess": {"policy": "DeleteCluster"}, "onFailure": {"policy": "DeleteCluster"},
        "deletionRules": [{"policy": "DeleteCluster", "condition": {"jobStatus": "SUCCEEDED", "ttlSeconds": 1}}],
    }  # fmt: skip
    found = list(
        manifests.crd_findings(_planted(training, "RayJob", lambda d: d["spec"].update(deletionStrategy=both)), crds)
    )
    assert found
    assert all("deletionStrategy" in line for line in found), found


def _stepwise(**options: int) -> dict[str, Any]:
    good = {"gatewayClassName": "envoy", "stepSizePercent": 25, "maxSurgePercent": 50, "intervalSeconds": 60}
    return {"type": "NewClusterWithIncrementalUpgrade", "clusterUpgradeOptions": good | options}


_SERVICE_FAULTS: dict[str, Callable[[Any], object]] = {
    "long name": lambda d: d["metadata"].update(name="m" * 48),
    "old Ray with a token": lambda d: d["spec"]["rayClusterConfig"].update(rayVersion="2.51.0"),
    "restarting pods": lambda d: d["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"].update(
        restartPolicy="Always"
    ),
    "fewer than the least": lambda d: d["spec"]["rayClusterConfig"]["workerGroupSpecs"][0].update(maxReplicas=1),
    "Redis twice": lambda d: d["spec"]["rayClusterConfig"]["headGroupSpec"]["rayStartParams"].update(
        {"redis-password": "x"}
    ),
    "a strategy inside": lambda d: d["spec"]["rayClusterConfig"].update(upgradeStrategy={"type": "Recreate"}),
    "large steps": lambda d: d["spec"].update(upgradeStrategy=_stepwise(stepSizePercent=80)),
    "no interval": lambda d: d["spec"].update(upgradeStrategy=_stepwise(intervalSeconds=0)),
    "no autoscaler": lambda d: (
        d["spec"].update(upgradeStrategy=_stepwise()),
        d["spec"]["rayClusterConfig"].update(enableInTreeAutoscaling=False),
    ),
    "a head service's name": lambda d: d["spec"]["rayClusterConfig"]["headGroupSpec"].update(
        headService={"metadata": {"name": "x"}}
    ),
}


@pytest.mark.parametrize("name", _SERVICE_FAULTS)
def test_what_the_operator_refuses_of_a_service_is_found(name: str, serving: list[Document]) -> None:
    (service,) = of_kind(_planted(serving, "RayService", _SERVICE_FAULTS[name]), "RayService")
    assert list(manifests.operator_findings(service))


_JOB_FAULTS: dict[str, dict[str, Any]] = {
    "kept cluster": {"shutdownAfterJobFinishes": False},
    "sidecar": {"submissionMode": "SidecarMode"},
    "tried again": {"backoffLimit": 2},
    "submitted again": {"submitterConfig": {}},
    "deleted twice": {"deletionStrategy": {"deletionRules": []}},
}


@pytest.mark.parametrize("name", _JOB_FAULTS)
def test_what_the_operator_refuses_of_a_job_is_found(name: str, training: list[Document]) -> None:
    (job,) = of_kind(_planted(training, "RayJob", lambda d: d["spec"].update(_JOB_FAULTS[name])), "RayJob")
    assert list(manifests.operator_findings(job))


_POD_FAULTS: dict[str, Callable[[Any], object]] = {
    "root": lambda pod: pod["securityContext"].update(runAsNonRoot=False),
    "no seccomp": lambda pod: pod["securityContext"].pop("seccompProfile"),
    "writable root": lambda pod: pod["containers"][0]["securityContext"].update(readOnlyRootFilesystem=False),
    "capabilities": lambda pod: pod["containers"][0]["securityContext"].pop("capabilities"),
    "memory without end": lambda pod: pod["containers"][0]["resources"].pop("limits"),
    "a token": lambda pod: pod.pop("automountServiceAccountToken"),
}


@pytest.mark.parametrize("name", _POD_FAULTS)
def test_a_right_too_many_is_found(name: str, serving: list[Document]) -> None:
    changed = _planted(
        serving, "RayService", lambda d: _POD_FAULTS[name](cluster_of(d)["workerGroupSpecs"][0]["template"]["spec"])
    )
    assert list(manifests.hardening_findings(of_kind(changed, "RayService")[0]))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("max_ongoing_requests", "max_ongoing_request"),
        ("serve.app:build_app", "serve.app:build"),
        ("max_replicas: 4", "max_replicas: 40"),
        ("port: 8000", "port: 8001"),
        ("host: 0.0.0.0", "host: 127.0.0.1"),
    ],
)
def test_a_fault_in_the_serve_config_is_found(old: str, new: str, serving: list[Document]) -> None:
    def plant(service: Any) -> None:
        text = service["spec"]["serveConfigV2"]
        assert old in text
        service["spec"]["serveConfigV2"] = text.replace(old, new)

    assert list(manifests.serve_findings(of_kind(_planted(serving, "RayService", plant), "RayService")[0]))


_REFERENCE_FAULTS: dict[str, Callable[[Any], object]] = {
    "account": lambda worker: worker["template"]["spec"].update(serviceAccountName="nobody"),
    "volume": lambda worker: worker["template"]["spec"]["volumes"].pop(),
    "secret": lambda worker: worker["template"]["spec"]["containers"][0]["envFrom"].append(
        {"secretRef": {"name": "x"}}
    ),
    "config map": lambda worker: worker["template"]["spec"]["containers"][0]["envFrom"].append(
        {"configMapRef": {"name": "x"}}
    ),
    "image": lambda worker: worker["template"]["spec"]["containers"][0].update(
        image="registry.example.org/x:2.59.0-cpu"
    ),
    "label": lambda worker: worker["template"]["metadata"]["labels"].update({"app.kubernetes.io/component": "other"}),
}


@pytest.mark.parametrize("name", _REFERENCE_FAULTS)
def test_what_is_named_and_not_there_is_found(name: str, serving: list[Document]) -> None:
    told = {"melanoma-ray-token", "melanoma-redis", "melanoma-storage-read", "melanoma-api-keys"}
    assert list(manifests.reference_findings(serving, given=told)) == []
    changed = _planted(serving, "RayService", lambda d: _REFERENCE_FAULTS[name](cluster_of(d)["workerGroupSpecs"][0]))
    assert list(manifests.reference_findings(changed, given=told))


def test_a_careless_dockerfile_is_found() -> None:
    assert "DL" in _hadolint("FROM python\nRUN cd /tmp && sudo ls\n")
