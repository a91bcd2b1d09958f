"""What the network policies must let pass, and what not, on the clusters that people have."""

from collections.abc import Callable
from typing import Any

import pytest

from tests import manifests
from tests.manifests import Document, planted
from tests.network import (
    ANYWHERE,
    JOBS,
    METADATA,
    NAMESPACE_LABEL,
    POD_IDENTITY,
    SERVING,
    Place,
    passes,
    traffic_findings,
)


@pytest.fixture(scope="module")
def everything() -> list[Document]:
    return manifests.render("cpu/serve") + manifests.render("cpu/jobs")


def test_what_is_needed_passes_and_nothing_else(everything: list[Document]) -> None:
    assert list(traffic_findings(everything)) == []


@pytest.mark.parametrize(
    ("storage", "place", "ports"),
    [
        ("storage-aws-pod-identity", POD_IDENTITY, (80,)),
        ("storage-gcs", METADATA, (80,)),
        ("storage-gcs", Place(address="169.254.169.252"), (988,)),
    ],
)
def test_credentials_of_the_cloud_can_be_had(
    storage: str, place: Place, ports: tuple[int, ...]
) -> None:
    serving = manifests.combined("melanoma", ["zones/serve", "base/serve"], [storage])
    jobs = manifests.combined("melanoma-jobs", ["zones/jobs"], [storage])
    for pod in (*SERVING, *JOBS):
        for port in ports:
            assert passes(serving + jobs, pod, place, port)
            assert not passes(serving + jobs, pod, ANYWHERE, port)


def test_a_policy_is_judged_as_kubernetes_judges_it() -> None:
    """An evaluator that always agreed would make the tests above worthless."""
    policy = {
        "kind": "NetworkPolicy",
        "metadata": {"name": "p", "namespace": "a"},
        "spec": {
            "podSelector": {"matchExpressions": [{"key": "x", "operator": "In", "values": ["1"]}]},
            "policyTypes": ["Ingress"],
            "ingress": [
                {
                    "from": [
                        {
                            "namespaceSelector": {"matchLabels": {NAMESPACE_LABEL: "b"}},
                            "podSelector": {"matchLabels": {"y": "1"}},
                        },
                        {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}},
                    ],
                    "ports": [{"port": 80}],
                }
            ],
        },
    }
    pod = Place("a", {"x": "1"})
    friend, other = Place("b", {"y": "1"}), Place("b", {"y": "2"})
    assert passes([policy], friend, pod, 80)
    assert not passes([policy], other, pod, 80)
    assert not passes([policy], Place("a", {"y": "1"}), pod, 80)
    assert not passes([policy], friend, pod, 81)
    assert not passes([policy], friend, pod, 80, "UDP")
    assert passes([policy], Place(address="10.2.0.1"), pod, 80)
    assert not passes([policy], Place(address="10.1.0.1"), pod, 80)
    assert passes([policy], other, Place("a", {"x": "2"}), 80)
    assert passes([policy], pod, other, 80)


def _namespace(name: str) -> dict[str, Any]:
    return {"from": [{"namespaceSelector": {"matchLabels": {NAMESPACE_LABEL: name}}}]}


def _let_in(rule: dict[str, Any]) -> tuple[str, Callable[[Any], object]]:
    return "NetworkPolicy/melanoma-ray", lambda spec: spec["ingress"].append(rule)


FAULTS: dict[str, tuple[str, Callable[[Any], object]]] = {
    "an open dashboard": _let_in({**_namespace("default"), "ports": [{"port": 8265}]}),
    "the world on the dashboard": _let_in(
        {"from": [{"ipBlock": {"cidr": "0.0.0.0/0"}}], "ports": [{"port": 8265}]}
    ),
    "a namespace on every port": _let_in(_namespace("monitoring")),
    "the other zone": _let_in(_namespace("melanoma-jobs")),
    "everybody": _let_in({"ports": [{"port": 8265}]}),
    "out to the world": ("NetworkPolicy/melanoma-out", lambda spec: spec["egress"].append({})),
    "no names": ("NetworkPolicy/melanoma-out", lambda spec: spec["egress"][0]["ports"].pop(0)),
    "nothing denied": (
        "NetworkPolicy/melanoma-deny",
        lambda spec: spec.update(policyTypes=["Ingress"]),
    ),
    "workers that change clusters": (
        "NetworkPolicy/melanoma-api-server",
        lambda spec: spec.update(podSelector={}),
    ),
    "Redis for everybody": (
        "NetworkPolicy/melanoma-redis",
        lambda spec: spec["ingress"].append({"from": [{"namespaceSelector": {}}]}),
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name: str, everything: list[Document]) -> None:
    kind, plant = FAULTS[name]
    assert list(traffic_findings(planted(everything, kind, lambda d: plant(d["spec"]))))
