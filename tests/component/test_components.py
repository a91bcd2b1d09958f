"""Each component alone and combinations of them climb the ladder of tests/manifests.py."""

from pathlib import Path

import pytest

from tests import manifest_rules as rules
from tests import manifests
from tests.manifests import COMPONENTS, K8S, Document, of_kind
from tests.operator_rules import operator_findings

ROOT = K8S.parent


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
