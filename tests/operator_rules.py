"""What the KubeRay operator refuses although every schema allows it: its rules, re-implemented.

From ray-operator/controllers/ray/utils/validation.go and common/service.go of KubeRay 1.7, for a
RayService or RayJob with a cluster of its own. What only an alpha gate opens is refused, as by an
operator as it comes.
"""

import re
from collections.abc import Iterator
from typing import Any

import yaml
from packaging.version import Version

from tests.manifests import Document, cluster_of, groups_of

MAX_NAME = 47  # of a RayService or RayJob: the cluster's name is longer
LEAST = {
    "ttlSecondsAfterFinished": 0,
    "backoffLimit": 0,
    "activeDeadlineSeconds": 1,
    "preRunningDeadlineSeconds": 1,
}
PATIENCE = "ray.io/initializing-timeout"
FAULT_TOLERANCE = {"ray.io/ft-enabled", "ray.io/external-storage-namespace"}
BEHIND_GATES = ("networkPolicy", "tlsOptions", "historyServerOptions")
LABEL = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
DELETIONS = ("DeleteWorkers", "DeleteCluster", "DeleteSelf")  # none before the one to its left
Fields = dict[str, Any]


def operator_findings(document: Document) -> Iterator[str]:
    """Check a RayService or RayJob and the cluster that it makes."""
    metadata, cluster = document["metadata"], cluster_of(document)
    if len(metadata["name"]) > MAX_NAME or not re.fullmatch(
        r"[a-z]([-a-z0-9]*[a-z0-9])?", metadata["name"]
    ):
        yield f"the name {metadata['name']} must be a DNS label of at most {MAX_NAME} letters"
    if "upgradeStrategy" in cluster:
        yield "a cluster inside another resource must not have an upgradeStrategy"
    for field in BEHIND_GATES:
        if field in cluster:
            yield f"{field} needs an alpha gate of the operator"
    yield from _token_findings(cluster)
    yield from _group_findings(cluster)
    yield from _autoscaler_findings(cluster)
    yield from _redis_findings(cluster, metadata.get("annotations", {}))
    yield from (_service_findings if document["kind"] == "RayService" else _job_findings)(document)


def _token_findings(cluster: Fields) -> Iterator[str]:
    version, auth = Version(cluster.get("rayVersion") or "0"), cluster.get("authOptions", {})
    if auth.get("mode") == "token" and version < Version("2.52.0"):
        yield "authOptions.mode token needs a rayVersion of at least 2.52.0"
    if auth.get("enableK8sTokenAuth"):
        yield "enableK8sTokenAuth is not allowed in a RayJob or RayService"


def _group_findings(cluster: Fields) -> Iterator[str]:
    for group in groups_of(cluster):
        started_with = set(group.get("rayStartParams", {}))
        if "resources" in group and {"num-cpus", "num-gpus", "memory", "resources"} & started_with:
            yield "a group has resources either of its own or in rayStartParams"
        if "labels" in started_with:
            yield "labels must not stand in rayStartParams"
        for key, value in group.get("labels", {}).items():
            if not re.fullmatch(rf"([a-z0-9.-]+/)?{LABEL}", key) or not re.fullmatch(
                rf"({LABEL})?", value
            ):
                yield f"labels must be written as Kubernetes writes them, {key}: {value} is not"
    for group in cluster.get("workerGroupSpecs", []):
        if not cluster.get("enableInTreeAutoscaling") and not {"minReplicas", "maxReplicas"} <= set(
            group
        ):
            yield "without the autoscaler a group must say minReplicas and maxReplicas"
        least, most = group.get("minReplicas", 0), group.get("maxReplicas", 2**31 - 1)
        if not 0 <= least <= most:
            yield f"minReplicas must be from 0 to maxReplicas, got {least} and {most}"


def _autoscaler_findings(cluster: Fields) -> Iterator[str]:
    autoscaling, options = (
        cluster.get("enableInTreeAutoscaling", False),
        cluster.get("autoscalerOptions", {}),
    )
    if any(each.get("idleTimeoutSeconds", 0) < 0 for each in (options, *groups_of(cluster))):
        yield "idleTimeoutSeconds must not be negative"
    if "RAY_enable_autoscaler_v2" in _variables(cluster):
        yield "the autoscaler's version must be told in autoscalerOptions alone"
    if "KUBERAY_GEN_AUTOSCALER_START_CMD" in {
        variable["name"] for variable in options.get("env", [])
    }:
        yield "KUBERAY_GEN_AUTOSCALER_START_CMD is the operator's"
    for group in groups_of(cluster):
        # What is not told is the second version for Ray as it is now, and is not where a group asks
        # for what only that one can.
        never = group["template"]["spec"].get("restartPolicy", "Never") == "Never"
        if autoscaling and options.get("version", "v2") == "v2" and not never:
            yield "with autoscaler v2 the restartPolicy of every pod must be Never"
        if ("idleTimeoutSeconds" in group or group.get("priority")) and not (
            autoscaling and options.get("version") == "v2"
        ):
            yield "idleTimeoutSeconds and priority of a group need autoscaler v2"
        if group.get("priority") and Version(cluster.get("rayVersion") or "0") < Version("2.56.0"):
            yield "priority of a group needs a rayVersion of at least 2.56.0"
        if group.get("suspend") and autoscaling:
            yield "with the autoscaler no group may be suspended"


def _redis_findings(cluster: Fields, annotations: Fields) -> Iterator[str]:
    told, variables = cluster["headGroupSpec"].get("rayStartParams", {}), _variables(cluster)
    if "redis-username" in told or "REDIS_USERNAME" in variables:
        yield "the name for Redis must stand in gcsFaultToleranceOptions"
    if "gcsFaultToleranceOptions" not in cluster:
        if "RAY_REDIS_ADDRESS" in variables:
            yield "RAY_REDIS_ADDRESS needs gcsFaultToleranceOptions"
        return
    options = cluster["gcsFaultToleranceOptions"]
    if "redis-password" in told or variables & {"REDIS_PASSWORD", "RAY_REDIS_ADDRESS"}:
        yield "with gcsFaultToleranceOptions Redis must be set nowhere else"
    if FAULT_TOLERANCE & set(annotations):
        yield "with gcsFaultToleranceOptions there must be no annotation of fault tolerance"
    if options.get("backend", "redis") != "redis" or "storage" in options:
        yield (
            "any backend but Redis needs an alpha gate of the operator, and storage is of that one"
        )


def _variables(cluster: Fields) -> set[str]:
    """Return the names of the head's environment variables; Ray's container is the first."""
    return {
        variable["name"]
        for variable in cluster["headGroupSpec"]["template"]["spec"]["containers"][0].get("env", [])
    }


def _service_findings(document: Document) -> Iterator[str]:
    spec, cluster = document["spec"], cluster_of(document)
    patience = document["metadata"].get("annotations", {}).get(PATIENCE) or "1"
    if cluster["headGroupSpec"].get("headService", {}).get("metadata", {}).get("name"):
        yield "headService.metadata.name must be left to the operator"
    ports = cluster["headGroupSpec"]["template"]["spec"]["containers"][0].get(
        "ports", [{"name": "serve"}]
    )
    if "serveService" not in spec and not any(
        re.match("serve($|-)", port["name"]) for port in ports
    ):
        yield "the head must have a port named serve, or no service for Serve is made"
    if not re.fullmatch(r"0*[1-9]\d*|(?=.*[1-9])(\d+(\.\d+)?(ns|us|ms|s|m|h))+", patience):
        yield f"{PATIENCE} must be a positive duration or number of seconds, got {patience}"
    if spec.get("rayClusterDeletionDelaySeconds", 0) < 0:
        yield "rayClusterDeletionDelaySeconds must not be negative"
    strategy = spec.get("upgradeStrategy", {})
    if strategy.get("type", "NewCluster") not in (
        "NewCluster",
        "NewClusterWithIncrementalUpgrade",
        "None",
    ):
        yield f"there is no upgradeStrategy {strategy['type']}"
    if strategy.get("type") == "NewClusterWithIncrementalUpgrade":
        options = strategy.get("clusterUpgradeOptions", {})
        if not cluster.get("enableInTreeAutoscaling"):
            yield "an incremental upgrade needs enableInTreeAutoscaling"
        if not options.get("gatewayClassName") or options.get("intervalSeconds", 0) <= 0:
            yield "an incremental upgrade needs a gatewayClassName and an interval"
        if (
            not 0
            <= options.get("stepSizePercent", -1)
            <= options.get("maxSurgePercent", 100)
            <= 100
        ):
            yield "stepSizePercent must be from 0 to maxSurgePercent, and that at most 100"


def _job_findings(document: Document) -> Iterator[str]:
    spec, cluster = document["spec"], cluster_of(document)
    if (spec.get("ttlSecondsAfterFinished", 0) or spec.get("suspend")) and not spec.get(
        "shutdownAfterJobFinishes"
    ):
        yield "ttlSecondsAfterFinished and suspend need shutdownAfterJobFinishes"
    for field, least in LEAST.items():
        if spec.get(field, least) < least:
            yield f"{field} must be at least {least}"
    try:
        yaml.safe_load(spec.get("runtimeEnvYAML", ""))
    except yaml.YAMLError:
        yield "runtimeEnvYAML must be YAML"
    if "deletionStrategy" in spec:
        yield from _deletion_findings(spec, cluster)
    mode, retries = spec.get("submissionMode", "K8sJobMode"), spec.get("backoffLimit", 0)
    if mode == "SidecarMode":
        if {"submitterPodTemplate", "submitterConfig", "clusterSelector"} & set(spec):
            yield "SidecarMode has no submitter of its own"
        if cluster["headGroupSpec"]["template"]["spec"].get("restartPolicy", "Never") != "Never":
            yield "with SidecarMode the restartPolicy of the head must be Never"
    if retries and (mode == "InteractiveMode" or "clusterSelector" in spec):
        yield "backoffLimit needs a cluster for each try"


def _deletion_findings(spec: Fields, cluster: Fields) -> Iterator[str]:
    strategy, shuts_down = spec["deletionStrategy"], spec.get("shutdownAfterJobFinishes")
    rules, whole = strategy.get("deletionRules", []), {"onSuccess", "onFailure"} & set(strategy)
    if rules and shuts_down:
        yield "deletionRules exclude shutdownAfterJobFinishes"
    if bool(rules) == bool(whole) or len(whole) == 1:
        yield "deletionStrategy must have either deletionRules or both onSuccess and onFailure"
    policies = [rule["policy"] for rule in rules] + [strategy[name].get("policy") for name in whole]
    if None in policies:
        yield "onSuccess and onFailure must each have a policy"
    if "DeleteWorkers" in policies and cluster.get("enableInTreeAutoscaling"):
        yield "DeleteWorkers is not allowed with the autoscaler"
    if "DeleteNone" in policies and shuts_down:
        yield "DeleteNone excludes shutdownAfterJobFinishes"
    after: dict[tuple[Any, Any], dict[str, int]] = {}
    for rule in rules:
        condition = rule["condition"]
        states, seconds = (
            (condition.get("jobStatus"), condition.get("jobDeploymentStatus")),
            condition.get("ttlSeconds", 0),
        )
        if (None in states) == all(state is None for state in states) or seconds < 0:
            yield (
                "a deletion rule must name one of jobStatus and jobDeploymentStatus, and no"
                " negative ttlSeconds"
            )
        if rule["policy"] in after.setdefault(states, {}):
            yield f"{rule['policy']} must have one rule for a state, it has two"
        after[states][rule["policy"]] = seconds
    for waits in after.values():
        in_order = [waits[policy] for policy in DELETIONS if policy in waits]
        if in_order != sorted(in_order):
            yield f"what is deleted must go in the order {', '.join(DELETIONS)}"
