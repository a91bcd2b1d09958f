"""Every overlay climbs the ladder of tests/manifests.py without a finding."""

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import ray
import yaml

from melanoma import __version__
from serve.environment import ENVIRONMENT
from serve.render import patch
from tests import manifest_rules as rules
from tests import manifests
from tests.manifests import COMPONENTS, JOBS, K8S, OVERLAYS, Document, cluster_of, of_kind, rays
from tests.operator_rules import operator_findings

ROOT = K8S.parent


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> list[Document]:
    return manifests.world(request.param)


def test_there_is_an_overlay_for_each_cluster_and_purpose() -> None:
    both = {
        f"{cluster}/{purpose}" for cluster in ("cpu", "gpu") for purpose in ("serve", "jobs", *JOBS)
    }
    assert both | {"serve-minimal", "jobs-minimal"} == set(OVERLAYS)


@pytest.mark.parametrize(
    "path", sorted(K8S.rglob("*.yaml")), ids=lambda path: str(path.relative_to(K8S))
)
def test_files_are_tidy(path: Path) -> None:
    assert manifests.yamllint_findings(path.read_text()) == []


def test_core_kinds_follow_their_schemas(overlay: list[Document]) -> None:
    assert list(manifests.core_findings(overlay)) == []


def test_kuberay_kinds_follow_their_definitions(overlay: list[Document], crds: Path) -> None:
    assert list(manifests.crd_findings(overlay, crds)) == []


def test_every_custom_kind_follows_its_definition(
    overlay: list[Document], crds: Path, more_crds: Path
) -> None:
    known = manifests.defined_kinds(crds) | manifests.defined_kinds(more_crds)
    assert manifests.custom_kinds(overlay) <= known
    assert list(manifests.crd_findings(overlay, more_crds)) == []


def test_the_operator_takes_them(overlay: list[Document]) -> None:
    assert [found for document in rays(overlay) for found in operator_findings(document)] == []


def _jobs(documents: list[Document]) -> list[Document]:
    return of_kind(rays(documents), "RayJob")


def test_jobs_free_their_nodes(overlay: list[Document]) -> None:
    assert [found for job in _jobs(overlay) for found in rules.ending_findings(job)] == []


def test_nothing_tries_a_job_again(overlay: list[Document]) -> None:
    assert [found for job in _jobs(overlay) for found in rules.retry_findings(job)] == []


def test_pods_have_no_rights_they_do_not_need(overlay: list[Document]) -> None:
    assert [
        found for document in rays(overlay) for found in rules.hardening_findings(document)
    ] == []


def test_what_is_named_is_there(overlay: list[Document]) -> None:
    assert list(rules.reference_findings(overlay, given=_told())) == []


def _told() -> set[str]:
    """Return the secrets that the documentation tells to make."""
    text = (ROOT / "docs" / "kubernetes" / "production.md").read_text()
    return set(re.findall(r"create secret \S+ (\S+)", text))


@pytest.mark.parametrize("name", ["cpu/serve", "gpu/serve", "serve-minimal"])
def test_the_serve_config_is_strict_and_fits(name: str) -> None:
    (service,) = of_kind(manifests.render(name), "RayService")
    least = 1 if name == "serve-minimal" else 2
    assert list(rules.serve_findings(service, least_replicas=least)) == []


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
    for job in _jobs(documents):
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
    assert list(rules.reference_findings([*zone, *documents], given=_told())) == []
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


NOT_OF_THE_SERVICE = ("values", "values-serve", "monitoring-jobs", "nightly")
COMBINATIONS = [
    *([name] for name in COMPONENTS if name not in NOT_OF_THE_SERVICE),
    ["gpu", "redis", "redis-ca", "gateway", "monitoring", "keys", "storage-aws-irsa", "logs"],
    ["small", "keys", "storage-gcs", "monitoring", "logs"],
]


@pytest.mark.parametrize("components", COMBINATIONS, ids="+".join)
def test_components_of_the_service_can_be_combined(components: list[str]) -> None:
    documents = _service_with(components)
    assert list(manifests.core_findings(documents)) == []
    (service,) = of_kind(documents, "RayService")
    assert list(operator_findings(service)) == []
    assert list(rules.hardening_findings(service)) == []
    assert list(rules.placement_findings(service)) == []
    least = 1 if "small" in components else 2
    assert list(rules.serve_findings(service, least_replicas=least)) == []


def _service_with(components: list[str]) -> list[Document]:
    return manifests.combined("melanoma", ["zones/serve", "base/serve"], components)


JOB_COMBINATIONS = [
    *([name] for name in COMPONENTS if name.startswith("storage-")),
    ["gpu"],
    ["kueue"],
    ["gpu", "kueue", "storage-gcs", "monitoring-jobs"],
]


def _job_with(components: list[str]) -> list[Document]:
    return manifests.combined("melanoma-jobs", ["zones/jobs", "jobs/train"], components)


def test_combinations_follow_kuberays_definitions(crds: Path) -> None:
    combinations = [*map(_service_with, COMBINATIONS), *map(_job_with, JOB_COMBINATIONS)]
    assert [
        found for documents in combinations for found in manifests.crd_findings(documents, crds)
    ] == []


@pytest.mark.parametrize("components", JOB_COMBINATIONS, ids="+".join)
def test_components_of_the_jobs_can_be_combined(components: list[str]) -> None:
    documents = _job_with(components)
    assert list(manifests.core_findings(documents)) == []
    (job,) = of_kind(documents, "RayJob")
    assert list(operator_findings(job)) == []
    assert list(rules.hardening_findings(job)) == []
    assert list(rules.placement_findings(job)) == []
    assert list(rules.ending_findings(job)) == []
    assert list(rules.kueue_findings(job)) == []


def test_pods_run_on_the_nodes_that_people_have(overlay: list[Document]) -> None:
    assert [
        found for document in rays(overlay) for found in rules.placement_findings(document)
    ] == []


def test_the_minimal_service_fits_a_small_machine() -> None:
    """A machine of 6 GiB has about 5,900 MiB, of which Kubernetes itself and KubeRay's operator ask
    for 800 on kind, and for one CPU."""
    (service,) = of_kind(manifests.render("serve-minimal"), "RayService")
    asked = [
        container["resources"]["requests"]
        for spec in manifests.pod_specs(service)
        for container in spec["containers"]
    ]
    assert sum(_millicores(each["cpu"]) for each in asked) <= 1000
    assert sum(_mebibytes(each["memory"]) for each in asked) <= 5000


def _millicores(text: str) -> int:
    return int(text.removesuffix("m")) if text.endswith("m") else 1000 * int(text)


def _mebibytes(text: str) -> int:
    return int(text.removesuffix("Mi")) if text.endswith("Mi") else 1024 * int(text[:-2])


def test_no_gateway_leads_to_a_service_without_keys(overlay: list[Document]) -> None:
    for service in of_kind(overlay, "RayService") if of_kind(overlay, "Gateway") else []:
        config = yaml.safe_load(service["spec"]["serveConfigV2"])
        assert config["applications"][0]["args"]["require_api_key"] is True
        assert "MELANOMA_API_KEYS_FILE" in str(service)


def test_a_budget_lets_a_node_be_drained(overlay: list[Document]) -> None:
    for budget in of_kind(overlay, "PodDisruptionBudget"):
        (service,) = of_kind(overlay, "RayService")
        (group,) = cluster_of(service)["workerGroupSpecs"]
        assert budget["spec"]["minAvailable"] < group["minReplicas"]


def test_logs_fit_into_their_volume(overlay: list[Document]) -> None:
    assert list(rules.log_findings(overlay)) == []


@pytest.mark.parametrize("storage", ["storage-aws-irsa", "storage-gcs"])
def test_serving_and_jobs_have_rights_of_their_own(storage: str) -> None:
    for namespace, zone, identity in (
        ("melanoma", "serve", "reader"),
        ("melanoma-jobs", "jobs", "writer"),
    ):
        accounts = of_kind(
            manifests.combined(namespace, [f"zones/{zone}"], [storage]), "ServiceAccount"
        )
        assert len(accounts) == 2
        for account in accounts:
            assert [*account["metadata"]["annotations"].values()] == [identity]


def test_keys_for_storage_can_be_done_without() -> None:
    """Someone with an identity of a cloud makes no secret for storage."""
    for components in (["storage-aws-irsa"], ["storage-gcs"], ["storage-aws-pod-identity"], []):
        documents = manifests.combined("melanoma", ["zones/serve", "base/serve"], components)
        (service,) = of_kind(documents, "RayService")
        assert "melanoma-storage" not in str(service)


def test_nothing_is_filled_in_within_lists(overlay: list[Document], crds: Path) -> None:
    assert [found for document in overlay for found in manifests.filled_in(document, crds)] == []


def test_nothing_is_filled_in_within_lists_of_other_kinds(
    overlay: list[Document], more_crds: Path
) -> None:
    assert [found for each in overlay for found in manifests.filled_in(each, more_crds)] == []


def test_lists_are_written_out(overlay: list[Document]) -> None:
    assert list(rules.written_out_findings(overlay)) == []


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


@pytest.mark.parametrize("name", ["base/serve", "components/gpu", "components/small"])
def test_the_serve_config_has_one_source(name: str) -> None:
    folder = K8S / name
    assert (folder / "serve-config.yaml").read_text() == patch(folder), "run `make manifests`"


def test_ray_is_the_one_that_is_locked(overlay: list[Document]) -> None:
    locked = re.search(
        r"^ray(?:\[[^\]]*\])?==(\S+)", (K8S / "requirements.lock").read_text(), re.MULTILINE
    )
    assert locked is not None
    assert locked[1] == ray.__version__
    assert {cluster_of(document)["rayVersion"] for document in rays(overlay)} <= {locked[1]}


def test_pods_start_ray_as_the_service_wants_it(overlay: list[Document]) -> None:
    (found,) = [
        d["data"]
        for d in of_kind(overlay, "ConfigMap")
        if d["metadata"]["name"].startswith("melanoma-ray")
    ]
    assert ENVIRONMENT.items() <= found.items()


def test_a_job_is_a_command_of_ours(overlay: list[Document]) -> None:
    from ray_jobs.arguments import build_parser

    for job in _jobs(overlay):
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
