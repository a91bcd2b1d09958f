"""Every overlay climbs the ladder of tests/manifests.py without a finding."""

import re
from pathlib import Path

import pytest
import ray
import yaml

from serve.environment import ENVIRONMENT
from serve.render import patch
from tests import manifest_rules as rules
from tests import manifests
from tests.manifests import JOBS, K8S, OVERLAYS, Document, cluster_of, of_kind, rays
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


def test_jobs_free_their_nodes(overlay: list[Document]) -> None:
    assert [
        found for job in of_kind(rays(overlay), "RayJob") for found in rules.ending_findings(job)
    ] == []


def test_nothing_tries_a_job_again(overlay: list[Document]) -> None:
    assert [
        found for job in of_kind(rays(overlay), "RayJob") for found in rules.retry_findings(job)
    ] == []


def test_pods_have_no_rights_they_do_not_need(overlay: list[Document]) -> None:
    assert [
        found for document in rays(overlay) for found in rules.hardening_findings(document)
    ] == []


def test_what_is_named_is_there(overlay: list[Document]) -> None:
    assert list(rules.reference_findings(overlay, given=manifests.documented_secrets())) == []


@pytest.mark.parametrize("name", ["cpu/serve", "gpu/serve", "serve-minimal"])
def test_the_serve_config_is_strict_and_fits(name: str) -> None:
    (service,) = of_kind(manifests.render(name), "RayService")
    least = 1 if name == "serve-minimal" else 2
    assert list(rules.serve_findings(service, least_replicas=least)) == []


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
    from ray_jobs.cli import build_parser

    for job in of_kind(rays(overlay), "RayJob"):
        python, dash_m, module, *words = job["spec"]["entrypoint"].split()
        assert (python, dash_m, module) == ("python", "-m", "ray_jobs.cli")
        args = build_parser().parse_args(words)
        assert all(
            str(path).startswith("s3://")
            for name, path in vars(args).items()
            if name in ("source", "dataset", "bundle", "data", "out")
        )
