"""Which traffic network policies let pass, by the rules of networking.k8s.io/v1."""

import dataclasses
import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tests.manifests import Document, of_kind

NAMESPACE_LABEL = "kubernetes.io/metadata.name"


@dataclasses.dataclass(frozen=True)
class Place:
    """A pod, or an address that is no pod's.

    Attributes:
        namespace: of the pod; empty for an address.
        labels: of the pod.
        address: for what is no pod.
    """

    namespace: str = ""
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    address: str = ""


PART = {"app.kubernetes.io/part-of": "melanoma"}
COMPONENT = "app.kubernetes.io/component"
SERVE_HEAD, SERVE_WORKER = (
    Place("melanoma", {**PART, COMPONENT: name}) for name in ("serve-head", "serve-worker")
)
JOB_HEAD, JOB_WORKER, SUBMITTER = (
    Place("melanoma-jobs", {**PART, COMPONENT: name})
    for name in ("job-head", "job-worker", "submitter")
)
SERVING, JOBS = (SERVE_HEAD, SERVE_WORKER), (JOB_HEAD, JOB_WORKER, SUBMITTER)
REDIS = Place("melanoma", {"app.kubernetes.io/name": "redis"})
OPERATOR, PROMETHEUS, GATEWAY, STRANGER = (
    Place(name, {"app": name})
    for name in ("kuberay-operator", "monitoring", "envoy-gateway-system", "default")
)
INTRUDER = Place("melanoma", {"app": "intruder"})
ANYWHERE = Place(address="203.0.113.7")
METADATA, POD_IDENTITY = Place(address="169.254.169.254"), Place(address="169.254.170.23")
NAME_SERVERS = {
    "kube-dns or CoreDNS": (Place("kube-system", {"k8s-app": "kube-dns"}), 53),
    "its cache on the node": (Place(address="169.254.20.10"), 53),
    "Cloud DNS of GKE": (METADATA, 53),
    "OpenShift": (Place("openshift-dns", {"dns.operator.openshift.io/daemonset-dns": "x"}), 5353),
}


def passes(
    documents: Sequence[Document],
    source: Place,
    target: Place,
    port: int,
    protocol: str = "TCP",
) -> bool:
    """Return whether the policies of both ends let traffic pass.

    Args:
        documents: those of all overlays that are applied, each policy with its namespace.
        source: who opens the connection.
        target: who is asked.
        port: port of the target.
        protocol: TCP or UDP.
    """
    policies = of_kind(list(documents), "NetworkPolicy")
    return _side(policies, source, target, "Egress", "to", port, protocol) and _side(
        policies, target, source, "Ingress", "from", port, protocol
    )


def _side(
    policies: Sequence[Document],
    own: Place,
    other: Place,
    kind: str,
    peers: str,
    port: int,
    protocol: str,
) -> bool:
    governing = [
        policy
        for policy in policies
        if own.namespace
        and policy["metadata"]["namespace"] == own.namespace
        and selects(policy["spec"]["podSelector"], own.labels)
        and kind in policy["spec"]["policyTypes"]
    ]
    if not governing:
        return True
    return any(
        _is_peer(rule.get(peers), other, policy["metadata"]["namespace"])
        and _is_port(rule.get("ports"), port, protocol)
        for policy in governing
        for rule in policy["spec"].get(kind.lower(), [])
    )


def _is_port(ports: Any, port: int, protocol: str) -> bool:
    return not ports or any(
        each["port"] == port and each.get("protocol", "TCP") == protocol for each in ports
    )


def _is_peer(peers: Any, place: Place, namespace: str) -> bool:
    return not peers or any(_matches(peer, place, namespace) for peer in peers)


def _matches(peer: Mapping[str, Any], place: Place, namespace: str) -> bool:
    if "ipBlock" in peer:
        block = peer["ipBlock"]
        return bool(place.address) and _is_in(place.address, block)
    if not place.namespace:
        return False
    if "namespaceSelector" in peer:
        inside = selects(peer["namespaceSelector"], {NAMESPACE_LABEL: place.namespace})
    else:
        inside = place.namespace == namespace
    return inside and selects(peer.get("podSelector", {}), place.labels)


def _is_in(address: str, block: Mapping[str, Any]) -> bool:
    found = ipaddress.ip_address(address)
    return found in ipaddress.ip_network(block["cidr"]) and not any(
        found in ipaddress.ip_network(left_out) for left_out in block.get("except", [])
    )


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Return whether a selector of labels selects them."""
    return all(
        labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()
    ) and all(_holds(rule, labels) for rule in selector.get("matchExpressions", []))


def _holds(rule: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    value = labels.get(rule["key"])
    return {
        "In": value in rule.get("values", []),
        "NotIn": value not in rule.get("values", []),
        "Exists": value is not None,
        "DoesNotExist": value is None,
    }[rule["operator"]]


def traffic_findings(documents: Sequence[Document]) -> Iterator[str]:
    """Check that what serving and jobs need passes, and nothing else.

    Args:
        documents: of a serving overlay with Redis, gateway and monitoring, and of the jobs' zone.
    """
    for pod in (*SERVING, *JOBS, REDIS):
        for name, (server, port) in NAME_SERVERS.items():
            for protocol in ("UDP", "TCP"):
                if not passes(documents, pod, server, port, protocol):
                    yield f"{pod} must reach the name server {name}"
    for source, target, port in _needed():
        if not passes(documents, source, target, port):
            yield f"{source} must reach {target} at {port}"
    for source, target, port in _forbidden():
        if passes(documents, source, target, port):
            yield f"{source} must not reach {target} at {port}"


def _needed() -> Iterator[tuple[Place, Place, int]]:
    for pod in (*SERVING, *JOBS):
        yield pod, ANYWHERE, 443  # object storage, STS, managed identity of Azure
    for head in (SERVE_HEAD, JOB_HEAD):
        yield from ((head, ANYWHERE, port) for port in (443, 6443, 8443))  # API servers
        yield OPERATOR, head, 8265
    for zone in (SERVING, JOBS):
        yield from ((a, b, port) for a in zone for b in zone for port in (6379, 8265, 23456))
    yield SERVE_HEAD, REDIS, 6380
    yield from ((SERVE_HEAD, ANYWHERE, port) for port in (6378, 6379, 6380))  # managed Redis
    yield from ((REDIS, REDIS, port) for port in (6380, 26379))  # copies and sentinels
    yield PROMETHEUS, REDIS, 9121
    yield GATEWAY, SERVE_WORKER, 8000
    yield from ((PROMETHEUS, SERVE_HEAD, port) for port in (8080, 44217, 44227))
    yield from ((PROMETHEUS, pod, 8080) for pod in (SERVE_WORKER, JOB_HEAD, JOB_WORKER))


def _forbidden() -> Iterator[tuple[Place, Place, int]]:
    for ours in SERVING:
        for theirs in JOBS:
            for port in (8265, 10001, 6379, 8000, 8080, 443):
                yield ours, theirs, port
                yield theirs, ours, port
    for pod in (*SERVING, *JOBS):
        for port in (80, 443, 6379, 8000, 8080, 8265, 10001):
            yield STRANGER, pod, port
            yield ANYWHERE, pod, port
        yield pod, METADATA, 80  # the node's own rights
        yield pod, POD_IDENTITY, 80
        yield pod, STRANGER, 8080
        yield pod, ANYWHERE, 80
    for pod in (*SERVING, *JOBS, REDIS, ANYWHERE, STRANGER):
        yield from ((INTRUDER, pod, port) for port in (443, 6380, 8000, 8265))
    for worker in (SERVE_WORKER, JOB_WORKER, SUBMITTER):
        yield from ((worker, ANYWHERE, port) for port in (6443, 8443))
    for pod in (SERVE_WORKER, *JOBS, STRANGER, GATEWAY, PROMETHEUS):
        yield pod, REDIS, 6380
    yield from ((GATEWAY, SERVE_HEAD, port) for port in (8000, 8265))
    yield from ((GATEWAY, SERVE_WORKER, port) for port in (8080, 8265))
    yield from ((PROMETHEUS, SERVE_WORKER, port) for port in (8000, 8265))
    yield from ((OPERATOR, SERVE_WORKER, port) for port in (6379, 8000))
