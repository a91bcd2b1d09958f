"""For each rung of the ladder a planted fault, which must be found."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import manifest_rules as rules
from tests import manifests
from tests.manifests import Document, cluster_of, of_kind, planted


def test_an_untidy_file_is_found() -> None:
    assert manifests.yamllint_findings("a: 1\na:  2\n")


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
    assert list(manifests.core_findings(planted(serving, "PodDisruptionBudget", plant)))


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
def test_a_fault_against_a_definition_is_found(
    plant: Any, serving: list[Document], crds: Path
) -> None:
    assert list(
        manifests.crd_findings(planted(serving, "RayService", lambda d: plant(d["spec"])), crds)
    )


def test_a_fault_that_only_a_rule_in_cel_knows_is_found(
    training: list[Document], crds: Path
) -> None:
    """The definition's schema allows both ways to delete what a job leaves; its rule allows one of
    them."""
    both = {
        "onSuccess": {"policy": "DeleteCluster"},
        "onFailure": {"policy": "DeleteCluster"},
        "deletionRules": [
            {"policy": "DeleteCluster", "condition": {"jobStatus": "SUCCEEDED", "ttlSeconds": 1}}
        ],
    }
    found = list(
        manifests.crd_findings(
            planted(training, "RayJob", lambda d: d["spec"].update(deletionStrategy=both)), crds
        )
    )
    assert found
    assert all("deletionStrategy" in line for line in found), found


@pytest.mark.parametrize(
    "fault",
    [{"backoffLimit": 2}, {"submitterConfig": {"backoffLimit": 0}}, {"submitterConfig": {}}],
)
def test_a_job_that_is_tried_again_or_given_up_is_found(
    fault: dict[str, Any], training: list[Document]
) -> None:
    (job,) = of_kind(planted(training, "RayJob", lambda d: d["spec"].update(fault)), "RayJob")
    assert list(rules.retry_findings(job))


@pytest.mark.parametrize(
    "plant",
    [
        lambda job: job["spec"].update(ttlSecondsAfterFinished=3600),
        lambda job: job["spec"].update(shutdownAfterJobFinishes=False),
    ],
    ids=["an hour", "for ever"],
)
def test_a_job_that_keeps_its_nodes_is_found(plant: Any, training: list[Document]) -> None:
    (job,) = of_kind(planted(training, "RayJob", plant), "RayJob")
    assert list(rules.ending_findings(job))


@pytest.mark.parametrize(
    "plant",
    [
        lambda job: job["spec"]["rayClusterSpec"].update(enableInTreeAutoscaling=True),
        lambda job: job["spec"].update(shutdownAfterJobFinishes=False),
        lambda job: job["spec"].update(clusterSelector={"ray.io/cluster": "mine"}),
        lambda job: job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0].update(maxReplicas=9),
    ],
    ids=["an autoscaler", "a cluster that stays", "a cluster that is there", "a range of workers"],
)
def test_a_job_that_kueue_refuses_is_found(plant: Any) -> None:
    queued = manifests.combined("melanoma-jobs", ["jobs/train"], ["kueue"])
    (job,) = of_kind(planted(queued, "RayJob", plant), "RayJob")
    assert list(rules.kueue_findings(job))


@pytest.mark.parametrize(
    "plant",
    [
        lambda cluster: cluster["workerGroupSpecs"][0].pop("numOfHosts"),
        lambda cluster: cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["ports"][
            0
        ].pop("protocol"),
    ],
    ids=["hosts", "protocol"],
)
def test_a_list_that_is_filled_in_is_found(plant: Any, training: list[Document]) -> None:
    changed = planted(training, "RayJob", lambda job: plant(job["spec"]["rayClusterSpec"]))
    assert list(rules.written_out_findings(changed))


@pytest.mark.parametrize(
    ("kind", "plant"),
    [
        ("Gateway", lambda spec: spec["listeners"][0]["tls"]["certificateRefs"][0].pop("kind")),
        ("HTTPRoute", lambda spec: spec["parentRefs"][0].pop("group")),
        ("HTTPRoute", lambda spec: spec["rules"][0]["backendRefs"][0].pop("weight")),
    ],
)
def test_a_list_of_the_gateway_that_is_filled_in_is_found(
    kind: str, plant: Any, serving: list[Document]
) -> None:
    changed = planted(serving, kind, lambda document: plant(document["spec"]))
    assert list(rules.written_out_findings(changed))


@pytest.mark.parametrize(
    "plant",
    [
        lambda cluster: cluster["workerGroupSpecs"][0]["template"]["spec"].update(
            nodeSelector={"nvidia.com/gpu.present": "true"}
        ),
        lambda cluster: cluster["headGroupSpec"]["template"]["spec"].pop("affinity"),
        lambda cluster: cluster["workerGroupSpecs"][0]["template"]["spec"]["containers"][0][
            "resources"
        ]["requests"].pop("ephemeral-storage"),
    ],
    ids=["a label that few nodes have", "a head on a spot node", "disk that nobody knows of"],
)
def test_a_pod_on_the_wrong_node_is_found(plant: Any, serving: list[Document]) -> None:
    changed = planted(serving, "RayService", lambda d: plant(cluster_of(d)))
    assert list(rules.placement_findings(of_kind(changed, "RayService")[0]))


def test_logs_that_fill_their_volume_are_found(serving: list[Document]) -> None:
    for key in ("RAY_ROTATION_MAX_BYTES", "RAY_ROTATION_BACKUP_COUNT"):
        changed = planted(serving, "ConfigMap/melanoma-ray", lambda d, key=key: d["data"].pop(key))
        assert list(rules.log_findings(changed)), key


_POD_FAULTS: dict[str, Callable[[Any], object]] = {
    "root": lambda pod: pod["securityContext"].update(runAsNonRoot=False),
    "no seccomp": lambda pod: pod["securityContext"].pop("seccompProfile"),
    "writable root": (
        lambda pod: pod["containers"][0]["securityContext"].update(readOnlyRootFilesystem=False)
    ),
    "capabilities": lambda pod: pod["containers"][0]["securityContext"].pop("capabilities"),
    "memory without end": lambda pod: pod["containers"][0]["resources"].pop("limits"),
    "a token": lambda pod: pod.pop("automountServiceAccountToken"),
}


@pytest.mark.parametrize("name", _POD_FAULTS)
def test_a_right_too_many_is_found(name: str, serving: list[Document]) -> None:
    changed = planted(
        serving,
        "RayService",
        lambda d: _POD_FAULTS[name](cluster_of(d)["workerGroupSpecs"][0]["template"]["spec"]),
    )
    assert list(rules.hardening_findings(of_kind(changed, "RayService")[0]))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("max_ongoing_requests", "max_ongoing_request"),
        ("serve.app:build_app", "serve.app:build"),
        ("max_replicas: '4'", "max_replicas: '40'"),
        ("min_replicas: '2'", "min_replicas: '1'"),
        ("port: 8000", "port: 8001"),
        ("host: 0.0.0.0", "host: 127.0.0.1"),
    ],
)
def test_a_fault_in_the_serve_config_is_found(old: str, new: str, serving: list[Document]) -> None:
    def plant(service: Any) -> None:
        text = service["spec"]["serveConfigV2"]
        assert old in text
        service["spec"]["serveConfigV2"] = text.replace(old, new)

    assert list(
        rules.serve_findings(of_kind(planted(serving, "RayService", plant), "RayService")[0])
    )


_REFERENCE_FAULTS: dict[str, Callable[[Any], object]] = {
    "account": lambda worker: worker["template"]["spec"].update(serviceAccountName="nobody"),
    "volume": lambda worker: worker["template"]["spec"]["volumes"].pop(),
    "secret": (
        lambda worker: worker["template"]["spec"]["containers"][0]["envFrom"].append(
            {"secretRef": {"name": "x"}}
        )
    ),
    "config map": (
        lambda worker: worker["template"]["spec"]["containers"][0]["envFrom"].append(
            {"configMapRef": {"name": "x"}}
        )
    ),
    "image": (
        lambda worker: worker["template"]["spec"]["containers"][0].update(
            image="registry.example.org/x:2.59.0-cpu"
        )
    ),
    "label": (
        lambda worker: worker["template"]["metadata"]["labels"].update(
            {"app.kubernetes.io/component": "other"}
        )
    ),
}


@pytest.mark.parametrize("name", _REFERENCE_FAULTS)
def test_what_is_named_and_not_there_is_found(name: str, serving: list[Document]) -> None:
    told = {
        "melanoma-ray-token",
        "melanoma-redis",
        "melanoma-storage",
        "melanoma-api-keys",
        "melanoma-tls",
    }
    assert list(rules.reference_findings(serving, given=told)) == []
    changed = planted(
        serving,
        "RayService",
        lambda d: _REFERENCE_FAULTS[name](cluster_of(d)["workerGroupSpecs"][0]),
    )
    assert list(rules.reference_findings(changed, given=told))


def test_a_careless_dockerfile_is_found() -> None:
    assert "DL" in manifests.hadolint_findings("FROM python\nRUN cd /tmp && sudo ls\n")


_MORE_FAULTS: dict[str, tuple[str, Callable[[Any], object]]] = {
    "a gateway's mode": (
        "Gateway",
        lambda spec: spec["listeners"][0]["tls"].update(mode="Terminates"),
    ),
    "a gateway that ends TLS without a certificate": (
        "Gateway",
        lambda spec: spec["listeners"][0]["tls"].pop("certificateRefs"),
    ),
    "a route's path": (
        "HTTPRoute",
        lambda spec: spec["rules"][0]["matches"][0]["path"].update(type="Prefix"),
    ),
    "a route's patience": (
        "HTTPRoute",
        lambda spec: spec["rules"][0]["timeouts"].update(request=35),
    ),
    "a header to drop": (
        "ClientTrafficPolicy",
        lambda spec: spec["headers"].update(earlyRequestHeader={}),
    ),
    "a rate": (
        "BackendTrafficPolicy",
        lambda spec: spec["rateLimit"]["local"]["rules"][0]["limit"].update(unit="Fortnight"),
    ),
    "a monitor's endpoint": (
        "PodMonitor",
        lambda spec: spec["podMetricsEndpoints"][0].update(ports="metrics"),
    ),
    "a rule's duration": (
        "PrometheusRule",
        lambda spec: spec["groups"][0]["rules"][1].update({"for": "ten minutes"}),
    ),
}


@pytest.mark.parametrize("name", _MORE_FAULTS)
def test_a_fault_against_another_definition_is_found(
    name: str, serving: list[Document], more_crds: Path
) -> None:
    kind, plant = _MORE_FAULTS[name]
    assert list(
        manifests.crd_findings(planted(serving, kind, lambda d: plant(d["spec"])), more_crds)
    )


_WIRING_FAULTS: dict[str, tuple[str, Callable[[Any], object]]] = {
    "another listener": (
        "HTTPRoute",
        lambda spec: spec["parentRefs"][0].update(sectionName="http"),
    ),
    "another host": ("HTTPRoute", lambda spec: spec.update(hostnames=["other.example.org"])),
    "another service": (
        "HTTPRoute",
        lambda spec: spec["rules"][0]["backendRefs"][0].update(name="melanoma-head-svc"),
    ),
    "another port": (
        "HTTPRoute",
        lambda spec: spec["rules"][0]["backendRefs"][0].update(port=8265),
    ),
    "an impatient gateway": (
        "HTTPRoute",
        lambda spec: spec["rules"][0]["timeouts"].update(request="5s"),
    ),
    "a policy of nothing": (
        "BackendTrafficPolicy",
        lambda spec: spec["targetRefs"][0].update(name="other"),
    ),
    "a port nobody names": (
        "PodMonitor",
        lambda spec: spec["podMetricsEndpoints"][0].update(port="metric"),
    ),
    "endless bodies": ("BackendTrafficPolicy", lambda spec: spec.pop("requestBuffer")),
    "no rate": ("BackendTrafficPolicy", lambda spec: spec.pop("rateLimit")),
    "slow senders": (
        "ClientTrafficPolicy",
        lambda spec: spec["timeout"]["http"].pop("requestReceivedTimeout"),
    ),
    "an impatient try": (
        "BackendTrafficPolicy",
        lambda spec: spec["retry"]["perRetry"].update(timeout="1s"),
    ),
    "no time to drain": (
        "RayService",
        lambda spec: spec["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"].update(
            terminationGracePeriodSeconds=30
        ),
    ),
}


@pytest.mark.parametrize("name", _WIRING_FAULTS)
def test_a_loose_wire_is_found(name: str, serving: list[Document]) -> None:
    kind, plant = _WIRING_FAULTS[name]
    assert list(rules.wiring_findings(planted(serving, kind, lambda d: plant(d["spec"]))))


def test_a_right_too_many_of_the_autoscaler_is_found(serving: list[Document]) -> None:
    changed = planted(
        serving, "RayService", lambda d: cluster_of(d)["autoscalerOptions"].pop("securityContext")
    )
    assert list(rules.hardening_findings(of_kind(changed, "RayService")[0]))


def test_an_image_may_be_pinned_by_its_digest(serving: list[Document]) -> None:
    def pin(worker: Any) -> None:
        container = worker["template"]["spec"]["containers"][0]
        container["image"] += f"@sha256:{'0' * 64}"

    pinned = planted(serving, "RayService", lambda d: pin(cluster_of(d)["workerGroupSpecs"][0]))
    assert not [
        found for found in rules.reference_findings(pinned, given=set()) if "image tags" in found
    ]
