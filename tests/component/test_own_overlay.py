"""What people write themselves reaches its place: values, a repository of their own, patches, a
second run of a job."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from melanoma import __version__
from tests import manifest_rules as rules
from tests import manifests
from tests.manifests import JOBS, K8S, Document, cluster_of, of_kind, rays
from tests.operator_rules import operator_findings

ROOT = K8S.parent


@pytest.mark.parametrize("name", ["cpu", "gpu", "serve-minimal"])
def test_values_stand_in_one_file_and_reach_their_places(name: str, tmp_path: Path) -> None:
    """What a user writes into the values of an overlay is what is applied."""
    shutil.copytree(K8S, tmp_path / "k8s", ignore=shutil.ignore_patterns("requirements.lock"))
    values = tmp_path / "k8s" / "overlays" / name / "values" / "kustomization.yaml"
    written = yaml.safe_load(values.read_text())
    (generator,) = written["configMapGenerator"]
    told = dict(line.split("=", 1) for line in generator["literals"])
    changed = {
        key: str(int(value) + 1) if key.endswith(("replicas", "workers")) else f"{value}-mine"
        for key, value in told.items()
    }
    generator["literals"] = [f"{key}={value}" for key, value in changed.items()]
    for image in written["images"]:
        image["newName"] = f"mine/{image['name']}"
    values.write_text(yaml.safe_dump(written))
    purposes = ["serve", "jobs", *JOBS]
    overlays = [name] if name == "serve-minimal" else [f"{name}/{purpose}" for purpose in purposes]
    documents = [
        document
        for overlay in overlays
        for document in manifests.render(overlay, below=tmp_path / "k8s")
    ]
    (service,) = of_kind(documents, "RayService")
    (app,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    assert app["args"]["bundle"] == changed.pop("bundle")
    assert app["args"]["manifest_sha256"] == changed.pop("manifest_sha256")
    if name != "serve-minimal":
        token = changed.pop("ray_token")
        assert {cluster_of(each)["authOptions"]["secretName"] for each in rays(documents)} == {
            token
        }
        redis = cluster_of(service)["gcsFaultToleranceOptions"]["redisAddress"]
        assert redis == changed.pop("redis")
        _check_scale(service, app["deployments"], changed)
        for account in of_kind(documents, "ServiceAccount"):
            zone = {"melanoma": "serve", "melanoma-jobs": "jobs"}[account["metadata"]["namespace"]]
            assert [*account["metadata"]["annotations"].values()] == [changed[f"{zone}_identity"]]
        del changed["serve_identity"], changed["jobs_identity"]
    for job in of_kind(rays(documents), "RayJob"):
        verb = job["metadata"]["name"].removeprefix("melanoma-")
        assert job["spec"]["entrypoint"] == changed.pop(verb)
    for gateway in of_kind(documents, "Gateway"):
        assert gateway["spec"]["listeners"][0]["hostname"] == changed["host"]
    for route in of_kind(documents, "HTTPRoute"):
        assert route["spec"]["hostnames"] == [changed.pop("host")]
    assert not changed
    assert not of_kind(documents, "ConfigMap") or "melanoma-values" not in {
        document["metadata"]["name"] for document in of_kind(documents, "ConfigMap")
    }
    images = {
        container["image"]
        for document in rays(documents)
        for spec in manifests.pod_specs(document)
        for container in spec["containers"]
    }
    assert all(image.startswith("mine/melanoma-") for image in images), images


def _check_scale(service: Document, deployments: list[Document], changed: dict[str, str]) -> None:
    """Check how far a service scales, and take what says it out of the values."""
    edges = {
        name: [each["autoscaling_config"][name] for each in deployments]
        for name in ("min_replicas", "max_replicas")
    }
    assert [each["name"] for each in deployments] == ["Ingress", "Classifier", "Explainer"]
    assert edges["min_replicas"] == [changed["min_replicas"]] * 2 + ["1"]
    assert edges["max_replicas"] == [changed["max_replicas"]] * 3
    (group,) = cluster_of(service)["workerGroupSpecs"]
    assert [group["minReplicas"], group["replicas"]] == [int(changed["min_workers"])] * 2
    assert group["maxReplicas"] == int(changed["max_workers"])
    for name in ("min_replicas", "max_replicas", "min_workers", "max_workers"):
        del changed[name]


@pytest.fixture(scope="module")
def gitops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example of a repository of one's own, with this checkout in place of the address."""
    folder = tmp_path_factory.mktemp("gitops") / "k8s"
    shutil.copytree(K8S, folder, ignore=shutil.ignore_patterns("requirements.lock"))
    address = re.compile(
        rf"https://git\.example\.org/melanoma//k8s/(\S+)\?ref=v{re.escape(__version__)}"
    )
    for path in (folder / "examples" / "gitops").glob("*/kustomization.yaml"):
        text, num = address.subn(r"../../../\1", path.read_text())
        assert num > 0
        assert "git.example.org" not in text
        path.write_text(text)
    return folder / "examples" / "gitops"


@pytest.mark.parametrize("purpose", ["serve", "jobs", "train"])
def test_a_repository_of_ones_own_is_rendered(purpose: str, gitops: Path) -> None:
    documents = manifests.render_folder(gitops / purpose)
    zone = [] if purpose != "train" else manifests.render_folder(gitops / "jobs")
    assert list(manifests.core_findings(documents)) == []
    assert (
        list(rules.reference_findings([*zone, *documents], given=manifests.documented_secrets()))
        == []
    )
    for document in rays(documents):
        assert list(operator_findings(document)) == []
        assert list(rules.hardening_findings(document)) == []
    if purpose == "serve":
        assert list(rules.wiring_findings(documents)) == []
    own = [line for line in yaml.safe_dump_all(documents).splitlines() if "example.org" in line]
    assert own == []


def test_the_documented_patches_can_be_applied(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "kubernetes" / "gitops.md").read_text()
    (block,) = re.findall(r"```yaml\n(patches:.*?)```", text, re.DOTALL)
    documents = manifests.combined(
        "melanoma", ["zones/serve", "base/serve"], [], **yaml.safe_load(block)
    )
    assert list(manifests.core_findings(documents)) == []
    for account in of_kind(documents, "ServiceAccount"):
        assert account["imagePullSecrets"] == [{"name": "registry"}]
    (out,) = (
        policy
        for policy in of_kind(documents, "NetworkPolicy")
        if policy["metadata"]["name"] == "melanoma-out"
    )
    assert 9000 in {port["port"] for rule in out["spec"]["egress"] for port in rule["ports"]}
    (service,) = of_kind(documents, "RayService")
    assert list(operator_findings(service)) == []
    worker = cluster_of(service)["workerGroupSpecs"][0]["template"]["spec"]
    assert worker["runtimeClassName"] == "nvidia"
    assert len(worker["tolerations"]) == 1


def test_the_lines_of_an_installation_of_ones_own_are_counted() -> None:
    text = (ROOT / "docs" / "kubernetes" / "gitops.md").read_text()
    (command,) = re.findall(r"`(grep .* \| wc -l)`", text)
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert f"{done.stdout.strip()} lines in `values` and `serve`" in text


def test_argo_cd_applies_what_is_there(gitops: Path) -> None:
    for application in yaml.safe_load_all((gitops / "argo-cd.yaml").read_text()):
        path = gitops / Path(application["spec"]["source"]["path"]).name / "kustomization.yaml"
        namespace = yaml.safe_load(path.read_text())["namespace"]
        assert application["spec"]["destination"]["namespace"] == namespace


@pytest.mark.parametrize(
    "overlay", [f"{cluster}/{job}" for cluster in ("cpu", "gpu") for job in JOBS[:4]]
)
def test_a_job_can_be_created_a_second_time(overlay: str) -> None:
    """The documented command gives each run a name of its own and changes nothing else."""
    text = (ROOT / "docs" / "kubernetes" / "jobs.md").read_text()
    (command,) = re.findall(r"\| (sed .+) \| kubectl create -f -", text)
    (job,) = manifests.render(overlay)
    made = subprocess.run(
        ["bash", "-c", f"JOB={overlay.partition('/')[2]}; {command}"],
        input=yaml.safe_dump(job), capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    name = job["metadata"].pop("name")
    job["metadata"]["generateName"] = f"{name}-"
    assert yaml.safe_load(made) == job
