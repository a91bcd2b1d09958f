"""For each rule of the KubeRay operator a planted fault, which must be found and told in its
words."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.manifests import Document, cluster_of, groups_of, of_kind, planted
from tests.operator_rules import operator_findings

Plant = Callable[[Any], object]


def _stepwise(**options: int) -> Plant:
    good = {
        "gatewayClassName": "envoy",
        "stepSizePercent": 25,
        "maxSurgePercent": 50,
        "intervalSeconds": 60,
    }
    strategy = {"type": "NewClusterWithIncrementalUpgrade", "clusterUpgradeOptions": good | options}
    return lambda service: service["spec"].update(upgradeStrategy=strategy)


def _in_cluster(**fields: Any) -> Plant:
    return lambda document: cluster_of(document).update(fields)


def _in_spec(**fields: Any) -> Plant:
    return lambda document: document["spec"].update(fields)


def _in_head(plant: Plant) -> Plant:
    return lambda document: plant(cluster_of(document)["headGroupSpec"])


def _in_workers(plant: Plant) -> Plant:
    return lambda document: plant(cluster_of(document)["workerGroupSpecs"][0])


def _started_with(**told: str) -> Plant:
    return _in_head(
        lambda head: head["rayStartParams"].update(
            {key.replace("_", "-"): v for key, v in told.items()}
        )
    )


def _variable(name: str) -> Plant:
    return _in_head(
        lambda head: (
            head["template"]["spec"]["containers"][0]
            .setdefault("env", [])
            .append({"name": name, "value": "1"})
        )
    )


def _annotated(name: str, value: str) -> Plant:
    return lambda document: document["metadata"].update(annotations={name: value})


def _deleting(*rules: Any) -> Plant:
    """Plant deletion rules: (policy, seconds, state)."""
    made = [
        {
            "policy": policy,
            "condition": {"ttlSeconds": seconds, **({"jobStatus": state} if state else {})},
        }
        for policy, seconds, state in rules
    ]
    return _in_spec(
        deletionStrategy={"deletionRules": made},
        shutdownAfterJobFinishes=False,
        ttlSecondsAfterFinished=0,
    )


def _restarting(document: Any) -> None:
    for group in groups_of(cluster_of(document)):
        group["template"]["spec"]["restartPolicy"] = "Always"


def _both(*plants: Plant) -> Plant:
    return lambda document: [plant(document) for plant in plants]


_WHOLE = {"onSuccess": {"policy": "DeleteCluster"}, "onFailure": {"policy": "DeleteCluster"}}
_RULE = {"policy": "DeleteCluster", "condition": {"jobStatus": "SUCCEEDED", "ttlSeconds": 1}}
_NO_AUTOSCALER = _in_cluster(enableInTreeAutoscaling=False)

_FAULTS: dict[str, tuple[str, Plant]] = {
    "a long name": ("DNS label", lambda document: document["metadata"].update(name="m" * 48)),
    "a name with capitals": (
        "DNS label",
        lambda document: document["metadata"].update(name="Melanoma"),
    ),
    "a strategy inside": (
        "must not have an upgradeStrategy",
        _in_cluster(upgradeStrategy={"type": "Recreate"}),
    ),
    "the operator's network policy": (
        "networkPolicy needs an alpha gate",
        _in_cluster(networkPolicy={}),
    ),
    "the operator's TLS": ("tlsOptions needs an alpha gate", _in_cluster(tlsOptions={})),
    "the history server": (
        "historyServerOptions needs an alpha gate",
        _in_cluster(historyServerOptions={}),
    ),
    "an old Ray with a token": ("at least 2.52.0", _in_cluster(rayVersion="2.51.0")),
    "a token and no version": ("at least 2.52.0", _in_cluster(rayVersion="")),
    "a token of Kubernetes": (
        "enableK8sTokenAuth",
        _in_cluster(authOptions={"enableK8sTokenAuth": True}),
    ),
    "resources twice": (
        "of its own or in rayStartParams",
        _in_workers(
            lambda group: group.update(resources={"CPU": "2"}, rayStartParams={"num-cpus": "2"})
        ),
    ),
    "labels for ray start": ("labels must not", _started_with(labels="a=b")),
    "a label of other letters": (
        "as Kubernetes writes",
        _in_workers(lambda group: group.update(labels={"zone": "a b"})),
    ),
    "no bounds": (
        "must say minReplicas and maxReplicas",
        _both(_NO_AUTOSCALER, _in_workers(lambda group: group.pop("minReplicas"))),
    ),
    "fewer than none": (
        "from 0 to maxReplicas",
        _in_workers(lambda group: group.update(minReplicas=-1)),
    ),
    "fewer than the least": (
        "from 0 to maxReplicas",
        _in_workers(lambda group: group.update(minReplicas=3, maxReplicas=2)),
    ),
    "a negative patience": (
        "not be negative",
        _in_cluster(autoscalerOptions={"idleTimeoutSeconds": -1}),
    ),
    "a negative patience of a group": (
        "not be negative",
        _in_workers(lambda group: group.update(idleTimeoutSeconds=-1)),
    ),
    "a priority of an old Ray": (
        "at least 2.56.0",
        _both(
            _in_cluster(rayVersion="2.55.0"), _in_workers(lambda group: group.update(priority=1))
        ),
    ),
    "the autoscaler's version twice": (
        "in autoscalerOptions alone",
        _variable("RAY_enable_autoscaler_v2"),
    ),
    "the autoscaler's command": (
        "is the operator's",
        _in_cluster(
            autoscalerOptions={
                "env": [{"name": "KUBERAY_GEN_AUTOSCALER_START_CMD", "value": "true"}]
            }
        ),
    ),
    "restarting pods": (
        "must be Never",
        _both(_in_cluster(enableInTreeAutoscaling=True), _restarting),
    ),
    "a patience of the first autoscaler": (
        "need autoscaler v2",
        _both(
            _in_cluster(enableInTreeAutoscaling=True, autoscalerOptions={"version": "v1"}),
            _in_workers(lambda group: group.update(idleTimeoutSeconds=60)),
        ),
    ),
    "a priority without an autoscaler": (
        "need autoscaler v2",
        _both(_NO_AUTOSCALER, _in_workers(lambda group: group.update(priority=1))),
    ),
    "a suspended group": (
        "may be suspended",
        _both(
            _in_cluster(enableInTreeAutoscaling=True),
            _in_workers(lambda group: group.update(suspend=True)),
        ),
    ),
    "a name for Redis": ("the name for Redis", _started_with(redis_username="x")),
    "a name for Redis as a variable": ("the name for Redis", _variable("REDIS_USERNAME")),
    "Redis as a variable alone": (
        "needs gcsFaultToleranceOptions",
        _both(
            lambda document: cluster_of(document).pop("gcsFaultToleranceOptions", None),
            _variable("RAY_REDIS_ADDRESS"),
        ),
    ),
}
_REDIS = {"redisAddress": "redis:6379"}
_FAULTS_BESIDE_REDIS: dict[str, tuple[str, Plant]] = {
    "a password": ("set nowhere else", _started_with(redis_password="x")),
    "a password as a variable": ("set nowhere else", _variable("REDIS_PASSWORD")),
    "an address as a variable": ("set nowhere else", _variable("RAY_REDIS_ADDRESS")),
    "an annotation": ("no annotation", _annotated("ray.io/ft-enabled", "true")),
    "a namespace as an annotation": (
        "no annotation",
        _annotated("ray.io/external-storage-namespace", "x"),
    ),
    "another backend": (
        "but Redis needs",
        _in_cluster(gcsFaultToleranceOptions={"backend": "rocksdb"}),
    ),
    "a disk for Redis": (
        "but Redis needs",
        _in_cluster(gcsFaultToleranceOptions={**_REDIS, "storage": {}}),
    ),
}
_SERVICE_FAULTS: dict[str, tuple[str, Plant]] = {
    "a head service's name": (
        "must be left to the operator",
        _in_head(lambda head: head.update(headService={"metadata": {"name": "x"}})),
    ),
    "a head without Serve's port": (
        "a port named serve",
        _in_head(
            lambda head: head["template"]["spec"]["containers"][0].update(
                ports=[{"name": "dashboard"}]
            )
        ),
    ),
    "a negative delay": ("not be negative", _in_spec(rayClusterDeletionDelaySeconds=-1)),
    "another strategy": (
        "there is no upgradeStrategy",
        _in_spec(upgradeStrategy={"type": "Canary"}),
    ),
    "no time to begin": (
        "must be a positive duration",
        _annotated("ray.io/initializing-timeout", "0s"),
    ),
    "a time to begin that is none": (
        "must be a positive duration",
        _annotated("ray.io/initializing-timeout", "soon"),
    ),
    "large steps": ("stepSizePercent", _stepwise(stepSizePercent=80)),
    "a large surge": ("stepSizePercent", _stepwise(maxSurgePercent=101)),
    "no interval": ("an interval", _stepwise(intervalSeconds=0)),
    "no autoscaler": ("needs enableInTreeAutoscaling", _both(_stepwise(), _NO_AUTOSCALER)),
}
_JOB_FAULTS: dict[str, tuple[str, Plant]] = {
    "a kept cluster": ("need shutdownAfterJobFinishes", _in_spec(shutdownAfterJobFinishes=False)),
    "a negative wait": ("ttlSecondsAfterFinished must", _in_spec(ttlSecondsAfterFinished=-1)),
    "fewer tries than none": ("backoffLimit must", _in_spec(backoffLimit=-1)),
    "an environment that is no YAML": ("must be YAML", _in_spec(runtimeEnvYAML="{")),
    "no time to run": ("activeDeadlineSeconds must", _in_spec(activeDeadlineSeconds=0)),
    "no time to start": ("preRunningDeadlineSeconds must", _in_spec(preRunningDeadlineSeconds=-1)),
    "deleted twice": (
        "exclude shutdownAfterJobFinishes",
        _in_spec(deletionStrategy={"deletionRules": [_RULE]}),
    ),
    "both ways to delete": (
        "must have either",
        _in_spec(deletionStrategy={"deletionRules": [_RULE], **_WHOLE}),
    ),
    "no way to delete": ("must have either", _in_spec(deletionStrategy={})),
    "half a way to delete": (
        "must have either",
        _in_spec(deletionStrategy={"onSuccess": {"policy": "DeleteSelf"}}),
    ),
    "workers deleted": (
        "DeleteWorkers",
        _both(
            _in_cluster(enableInTreeAutoscaling=True),
            _in_spec(deletionStrategy={**_WHOLE, "onSuccess": {"policy": "DeleteWorkers"}}),
        ),
    ),
    "nothing deleted": (
        "DeleteNone",
        _in_spec(deletionStrategy={**_WHOLE, "onSuccess": {"policy": "DeleteNone"}}),
    ),
    "no policy": ("each have a policy", _in_spec(deletionStrategy={**_WHOLE, "onSuccess": {}})),
    "a rule for no state": ("must name one of", _deleting(("DeleteCluster", 1, None))),
    "a negative wait of a rule": ("must name one of", _deleting(("DeleteCluster", -1, "FAILED"))),
    "a rule twice": (
        "it has two",
        _deleting(("DeleteCluster", 1, "FAILED"), ("DeleteCluster", 2, "FAILED")),
    ),
    "a job before its cluster": (
        "in the order",
        _deleting(("DeleteCluster", 9, "FAILED"), ("DeleteSelf", 2, "FAILED")),
    ),
    "a sidecar with a submitter": (
        "no submitter",
        _in_spec(submissionMode="SidecarMode", submitterConfig={}),
    ),
    "a sidecar of a restarting head": (
        "with SidecarMode",
        _both(_in_spec(submissionMode="SidecarMode"), _restarting),
    ),
    "tried again by hand": (
        "a cluster for each try",
        _in_spec(submissionMode="InteractiveMode", backoffLimit=1),
    ),
}


def _told(documents: list[Document], kind: str, plant: Plant) -> str:
    (changed,) = of_kind(planted(documents, kind, plant), kind)
    return "\n".join(operator_findings(changed))


@pytest.mark.parametrize("name", _FAULTS)
def test_what_is_refused_of_any_cluster_is_found(
    name: str, serving: list[Document], training: list[Document]
) -> None:
    words, plant = _FAULTS[name]
    assert words in _told(serving, "RayService", plant)
    assert words in _told(training, "RayJob", plant)


@pytest.mark.parametrize("name", _FAULTS_BESIDE_REDIS)
def test_what_is_refused_beside_redis_is_found(
    name: str, serving: list[Document], training: list[Document]
) -> None:
    words, plant = _FAULTS_BESIDE_REDIS[name]
    assert words in _told(serving, "RayService", plant)
    assert words in _told(
        training, "RayJob", _both(_in_cluster(gcsFaultToleranceOptions=_REDIS), plant)
    )


@pytest.mark.parametrize("name", _SERVICE_FAULTS)
def test_what_is_refused_of_a_service_is_found(name: str, serving: list[Document]) -> None:
    words, plant = _SERVICE_FAULTS[name]
    assert words in _told(serving, "RayService", plant)


@pytest.mark.parametrize("patience", ["90", "30m", "1h30m", "0.5h"])
def test_a_time_to_begin_as_the_operator_wants_it_is_no_finding(
    patience: str, serving: list[Document]
) -> None:
    assert _told(serving, "RayService", _annotated("ray.io/initializing-timeout", patience)) == ""


def test_deletion_rules_as_the_operator_wants_them_are_no_finding(training: list[Document]) -> None:
    good = _deleting(
        ("DeleteCluster", 60, "SUCCEEDED"),
        ("DeleteSelf", 60, "SUCCEEDED"),
        ("DeleteCluster", 3600, "FAILED"),
    )
    assert _told(training, "RayJob", good) == ""


@pytest.mark.parametrize("name", _JOB_FAULTS)
def test_what_is_refused_of_a_job_is_found(name: str, training: list[Document]) -> None:
    words, plant = _JOB_FAULTS[name]
    assert words in _told(training, "RayJob", plant)
