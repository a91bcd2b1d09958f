"""The upper rungs of the ladder: what this project asks of its manifests, and that what they name
is there."""

import importlib
from collections.abc import Iterator
from typing import Any

import yaml

from serve.settings import check_config
from tests.manifests import (
    Document,
    cluster_of,
    containers_of,
    groups_of,
    of_kind,
    pod_specs,
    rays,
)
from tests.network import selects

PROXY_DRAIN_SECONDS = 30
ANSWERING = ("Ingress", "Classifier")
MOST_SECONDS_AFTER_THE_END = 300
MOST_QUEUED_GROUPS = 7
QUEUE = "kueue.x-k8s.io/queue-name"
SPOT_LABELS = {
    "karpenter.sh/capacity-type",
    "eks.amazonaws.com/capacityType",
    "cloud.google.com/gke-spot",
    "kubernetes.azure.com/scalesetpriority",
}
LOG_FILES = 100
"""Streams that Ray rotates in one pod: four for each of twenty replicas, and Ray's own."""
RAY_MAX_BYTES, RAY_BACKUPS = 512 * 2**20, 5  # ray_constants.LOGGING_ROTATE_BYTES, _BACKUP_COUNT


def retry_findings(document: Document) -> Iterator[str]:
    """Check that an exit code, a finding here, never makes a job run again, and that the pod that
    follows its log is replaced."""
    spec = document["spec"]
    if spec.get("backoffLimit") != 0:
        yield "a job must not be tried again, backoffLimit must be 0"
    if spec.get("submitterConfig", {}).get("backoffLimit", 2) < 5:
        yield "a submitter that is lost must be replaced, or the job is given up while it runs"


def ending_findings(document: Document) -> Iterator[str]:
    """Check that a job's nodes are free minutes after it ended, however it ended."""
    spec = document["spec"]
    if not spec.get("shutdownAfterJobFinishes"):
        yield "a job's cluster must go when the job has ended"
    if spec.get("ttlSecondsAfterFinished", 0) > MOST_SECONDS_AFTER_THE_END:
        yield (
            f"a job's cluster must go within {MOST_SECONDS_AFTER_THE_END} s after the job; it stays"
            f" {spec['ttlSecondsAfterFinished']}"
        )


def kueue_findings(document: Document) -> Iterator[str]:
    """Check what Kueue's webhook refuses of a job that has a queue (rayjob_webhook.go,
    raycluster_webhook.go)."""
    if QUEUE not in document["metadata"].get("labels", {}):
        return
    spec, cluster = document["spec"], cluster_of(document)
    if cluster.get("enableInTreeAutoscaling"):
        yield "Kueue refuses a cluster that Ray's autoscaler may change"
    if not spec.get("shutdownAfterJobFinishes"):
        yield "Kueue refuses a job that leaves its cluster"
    if spec.get("clusterSelector"):
        yield "Kueue refuses a job on a cluster that is there already"
    if len(cluster["workerGroupSpecs"]) > MOST_QUEUED_GROUPS:
        yield f"Kueue refuses more than {MOST_QUEUED_GROUPS} groups of workers"
    for group in cluster["workerGroupSpecs"]:
        if not group["replicas"] == group["minReplicas"] == group["maxReplicas"]:
            yield "without Ray's autoscaler the number of workers is fixed"


def placement_findings(document: Document) -> Iterator[str]:
    """Check that pods need no label that only some clouds or operators set, that heads avoid nodes
    that may vanish, and that the kubelet knows what disk they take."""
    for spec in pod_specs(document):
        if spec.get("nodeSelector"):
            yield f"nodes must be found by what they offer, not by {spec['nodeSelector']}"
        for container in containers_of(spec):
            if container["name"] == "ray-head" and not _avoids_spot(spec):
                yield "the head must not run on a spot node"
            if container["name"].startswith("ray-") and not all(
                "ephemeral-storage" in container["resources"][kind]
                for kind in ("requests", "limits")
                if container["name"] != "ray-job-submitter"
            ):
                yield f"{container['name']} must say what disk it takes"


def _avoids_spot(spec: dict[str, Any]) -> bool:
    needed = (
        spec.get("affinity", {})
        .get("nodeAffinity", {})
        .get("requiredDuringSchedulingIgnoredDuringExecution", {})
    )
    terms = needed.get("nodeSelectorTerms", [])
    return bool(terms) and all(
        {rule["key"] for rule in term["matchExpressions"] if rule["operator"] == "NotIn"}
        >= SPOT_LABELS
        for term in terms
    )


def written_out_findings(documents: list[Document]) -> Iterator[str]:
    """Check that lists hold what an API server would fill in, by the defaults of KubeRay's and the
    Gateway API's definitions."""
    for cluster in map(cluster_of, rays(documents)):
        for group in groups_of(cluster):
            for container in group["template"]["spec"]["containers"]:
                for port in container.get("ports", []):
                    if "protocol" not in port:
                        yield f"port {port['name']} must name its protocol"
        for group in cluster["workerGroupSpecs"]:
            for name in ("numOfHosts", "priority"):
                if name not in group:
                    yield f"a group of workers must say {name}"
    for gateway in of_kind(documents, "Gateway"):
        for listener in gateway["spec"]["listeners"]:
            for reference in listener["tls"]["certificateRefs"]:
                yield from _missing(reference, "group", "kind")
    for route in of_kind(documents, "HTTPRoute"):
        for reference in route["spec"]["parentRefs"]:
            yield from _missing(reference, "group", "kind")
        for rule in route["spec"]["rules"]:
            for reference in rule["backendRefs"]:
                yield from _missing(reference, "group", "kind", "weight")


def _missing(reference: dict[str, Any], *names: str) -> Iterator[str]:
    yield from (f"{reference['name']} must say {name}" for name in names if name not in reference)


def log_findings(documents: list[Document]) -> Iterator[str]:
    """Check that Ray's logs of all processes of a pod fit into the volume for /tmp."""
    told = {
        key: value
        for document in of_kind(documents, "ConfigMap")
        for key, value in document["data"].items()
    }
    for document in rays(documents):
        rotated = int(told.get("RAY_ROTATION_MAX_BYTES", RAY_MAX_BYTES)) * (
            1 + int(told.get("RAY_ROTATION_BACKUP_COUNT", RAY_BACKUPS))
        )
        for group in groups_of(cluster_of(document)):
            (size,) = (
                int(volume["emptyDir"]["sizeLimit"].removesuffix("Gi")) * 2**30
                for volume in group["template"]["spec"]["volumes"]
                if volume["name"] == "tmp"
            )
            if rotated * LOG_FILES > size:
                yield (
                    f"{LOG_FILES} log files of {rotated} bytes must fit into /tmp, which has {size}"
                )


def hardening_findings(document: Document) -> Iterator[str]:
    """Check what Pod Security `restricted` asks, and more: a read-only root, bounded memory, no
    token where none is needed."""
    cluster = cluster_of(document)
    if cluster.get("enableInTreeAutoscaling"):
        # KubeRay puts one more container, the autoscaler's, into the head's pod.
        yield from _container_findings("autoscaler", cluster.get("autoscalerOptions", {}))
    for spec in pod_specs(document):
        if not spec.get("securityContext", {}).get("runAsNonRoot"):
            yield "a pod must not run as root"
        if (
            spec.get("securityContext", {}).get("seccompProfile", {}).get("type")
            != "RuntimeDefault"
        ):
            yield "a pod must have the seccomp profile RuntimeDefault"
        for container in containers_of(spec):
            yield from _container_findings(container["name"], container)
        is_head = any(container["name"] == "ray-head" for container in spec["containers"])
        if not is_head and spec.get("automountServiceAccountToken", True):
            yield "only the head may hold a token for the API server"


def _container_findings(name: str, container: dict[str, Any]) -> Iterator[str]:
    locked, resources = container.get("securityContext", {}), container.get("resources", {})
    if locked.get("allowPrivilegeEscalation", True) or not locked.get("readOnlyRootFilesystem"):
        yield f"{name} must have a read-only root and no way to more rights"
    if locked.get("capabilities", {}).get("drop") != ["ALL"]:
        yield f"{name} must drop all capabilities"
    if not resources.get("limits") or resources["limits"].get("memory") != resources.get(
        "requests", {}
    ).get("memory"):
        yield f"{name} must ask for as much memory as it may take"


def serve_findings(document: Document, *, least_replicas: int = 2) -> Iterator[str]:
    """Check a RayService's Serve config strictly, that what it imports is there, and that its
    replicas fit the workers."""
    values = yaml.safe_load(document["spec"]["serveConfigV2"])
    try:
        config = check_config(values)
    except ValueError as error:
        yield str(error)
        return
    for app in config.applications:
        module, _, name = app.import_path.partition(":")
        if not hasattr(importlib.import_module(module), name):
            yield f"{app.import_path} must be there to be imported"
    group = cluster_of(document)["workerGroupSpecs"][0]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    for resource, option, there in (
        ("CPU", "num_cpus", group["rayStartParams"].get("num-cpus", limits["cpu"])),
        ("GPU", "num_gpus", limits.get("nvidia.com/gpu", 0)),
    ):
        wanted = dict.fromkeys(("min_replicas", "max_replicas"), 0.0)
        deployments = values["applications"][0]["deployments"]
        # A new version's first replica starts beside all old ones.
        wanted["max_replicas"] += (
            max(
                deployment["ray_actor_options"].get(option, 0)
                for deployment in deployments
                if deployment["max_surge_percent"]
            )
            if any(deployment["max_surge_percent"] for deployment in deployments)
            else 0
        )
        for deployment in deployments:
            for edge in wanted:
                wanted[edge] += int(deployment["autoscaling_config"][edge]) * deployment[
                    "ray_actor_options"
                ].get(option, 0)
        for edge, workers in (("min_replicas", "minReplicas"), ("max_replicas", "maxReplicas")):
            if wanted[edge] > float(there) * group[workers]:
                yield (
                    f"{edge} of all deployments need {wanted[edge]} {resource}s, {group[workers]}"
                    f" workers have {float(there) * group[workers]}"
                )
    for deployment in values["applications"][0]["deployments"]:
        least = int(deployment["autoscaling_config"]["min_replicas"])
        if deployment["name"] in ANSWERING and least < least_replicas:
            yield (
                f"{deployment['name']} must have {least_replicas} replicas at least, or a lost node"
                " is an outage"
            )
    for group in groups_of(cluster_of(document)):
        ports = {
            port["name"]: port["containerPort"]
            for port in group["template"]["spec"]["containers"][0]["ports"]
        }
        if (
            values["http_options"]["port"] != ports.get("serve")
            or values["http_options"]["host"] != "0.0.0.0"
        ):
            yield (
                "Serve must listen on the port that head and workers call serve, and not on"
                " loopback"
            )


def reference_findings(documents: list[Document], *, given: set[str]) -> Iterator[str]:
    """Check that what is named is there: secrets, config maps, accounts, volumes, and labels that
    selectors look for.

    Args:
        documents: of one overlay.
        given: secrets that the README tells to make.
    """
    made = {(document["kind"], document["metadata"]["name"]) for document in documents}
    labels: list[dict[str, str]] = []
    for document in rays(documents):
        labels += [
            group["template"]["metadata"]["labels"] for group in groups_of(cluster_of(document))
        ]
        labels += [
            document["spec"][name]["metadata"]["labels"]
            for name in ("submitterPodTemplate",)
            if name in document["spec"]
        ]
        for spec in pod_specs(document):
            if ("ServiceAccount", spec["serviceAccountName"]) not in made:
                yield f"the account {spec['serviceAccountName']} must be made"
            volumes = {volume["name"] for volume in spec.get("volumes", [])}
            for container in containers_of(spec):
                for mount in container.get("volumeMounts", []):
                    if mount["name"] not in volumes:
                        yield f"the volume {mount['name']} must be there to be mounted"
        cluster = cluster_of(document)
        tags = {
            container["image"].partition("@")[0].rpartition(":")[2]
            for spec in pod_specs(document)
            for container in spec["containers"]
            if container["name"].startswith("ray-")
        }
        if {tag.partition("-")[0] for tag in tags} != {cluster["rayVersion"]}:
            yield f"image tags {sorted(tags)} must be of the rayVersion {cluster['rayVersion']}"
    for kind, name in _named(documents):
        if kind == "ConfigMap" and (kind, name) not in made:
            yield f"the config map {name} must be made"
        if kind == "Secret" and name not in given:
            yield f"the secret {name} must be one that the README tells to make"
    for kind in ("PodDisruptionBudget", "PodMonitor", "NetworkPolicy"):
        for document in of_kind(documents, kind):
            wanted = document["spec"].get("selector") or document["spec"].get("podSelector", {})
            # Redis is brought by others.
            if (
                labels
                and "redis" not in str(wanted)
                and not any(selects(wanted, found) for found in labels)
            ):
                yield f"{kind} {document['metadata']['name']} selects no pod"


def wiring_findings(documents: list[Document]) -> Iterator[str]:
    """Check a serving overlay's wires: gateway to service, policies to what they govern, monitors
    and network policies to open ports."""
    (service,) = of_kind(documents, "RayService")
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    (gateway,), (route,) = of_kind(documents, "Gateway"), of_kind(documents, "HTTPRoute")
    listeners = {listener["name"]: listener for listener in gateway["spec"]["listeners"]}
    for parent in route["spec"]["parentRefs"]:
        if (
            parent["name"] != gateway["metadata"]["name"]
            or parent.get("sectionName") not in listeners
        ):
            yield "the route must hang on a listener of the gateway"
        elif {listeners[parent["sectionName"]]["hostname"]} != set(route["spec"]["hostnames"]):
            yield "route and listener must be of the same host"
    for rule in route["spec"]["rules"]:
        for backend in rule["backendRefs"]:
            # The service that KubeRay makes of a RayService.
            if (backend["name"], backend["port"]) != (
                f"{service['metadata']['name']}-serve-svc",
                config["http_options"]["port"],
            ):
                yield "the route must lead to the service that KubeRay makes, on Serve's port"
        if (
            int(rule["timeouts"]["request"].removesuffix("s"))
            <= config["http_options"]["request_timeout_s"]
        ):
            yield "the gateway must be more patient than Serve, whose refusal has words"
    made = {(document["kind"], document["metadata"]["name"]) for document in documents}
    for policy in (
        *of_kind(documents, "ClientTrafficPolicy"),
        *of_kind(documents, "BackendTrafficPolicy"),
    ):
        for target in policy["spec"]["targetRefs"]:
            if (target["kind"], target["name"]) not in made:
                yield f"{policy['kind']} must govern something that is there"
    yield from _limit_findings(documents, config)
    yield from _drain_findings(service, config)
    yield from _port_findings(documents, service)


def _limit_findings(documents: list[Document], config: dict[str, Any]) -> Iterator[str]:
    """What a service behind Ray's proxy cannot do for itself must be done before it."""
    clients = {
        key
        for policy in of_kind(documents, "ClientTrafficPolicy")
        for key in policy["spec"].get("timeout", {}).get("http", {})
    }
    if "requestReceivedTimeout" not in clients:
        yield "the gateway must bound how long a request takes to arrive"
    backends: dict[str, Any] = {}
    for policy in of_kind(documents, "BackendTrafficPolicy"):
        backends |= policy["spec"]
    if not {"requestBuffer", "rateLimit"} <= set(backends):
        yield "the gateway must bound bodies and rates"
    patience = backends.get("retry", {}).get("perRetry", {}).get("timeout", "0s")
    if int(patience.removesuffix("s")) <= config["http_options"]["request_timeout_s"]:
        yield "a try must be more patient than Serve, or what is slow is asked twice"


def _drain_findings(service: Document, config: dict[str, Any]) -> Iterator[str]:
    graceful = max(
        d["graceful_shutdown_timeout_s"] for d in config["applications"][0]["deployments"]
    )
    for group in cluster_of(service)["workerGroupSpecs"]:
        if (
            group["template"]["spec"].get("terminationGracePeriodSeconds", 30)
            <= graceful + PROXY_DRAIN_SECONDS
        ):
            yield "a worker must have more time to end than its replicas and its proxy take"


def _port_findings(documents: list[Document], service: Document) -> Iterator[str]:
    pods = [
        (
            group["template"]["metadata"]["labels"],
            group["template"]["spec"]["containers"][0]["ports"],
        )
        for group in groups_of(cluster_of(service))
    ]

    def ports_of(selector: dict[str, Any]) -> list[list[dict[str, Any]]]:
        return [
            ports
            for labels, ports in pods
            if selector.get("matchLabels", {}).items() <= labels.items()
        ]

    for monitor in of_kind(documents, "PodMonitor"):
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            for ports in ports_of(monitor["spec"]["selector"]):
                if endpoint["port"] not in {port["name"] for port in ports}:
                    yield (
                        f"PodMonitor {monitor['metadata']['name']} asks the port"
                        f" {endpoint['port']}, which its pods do not name"
                    )
    for policy in of_kind(documents, "NetworkPolicy"):
        open_ports = {
            port["containerPort"]
            for ports in ports_of(policy["spec"]["podSelector"])
            for port in ports
        }
        asked = {
            port["port"]
            for rule in policy["spec"].get("ingress", [])
            for port in rule.get("ports", [])
        }
        if open_ports and not asked <= open_ports:
            yield (
                f"NetworkPolicy {policy['metadata']['name']} lets in to"
                f" {sorted(asked - open_ports)}, which no pod opens"
            )


def _named(value: Any) -> Iterator[tuple[str, str]]:
    """Give every config map and secret that a document names."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("configMapRef", "configMapKeyRef"):
                yield "ConfigMap", inner["name"]
            elif key in ("secretRef", "secretKeyRef"):
                yield "Secret", inner["name"]
            elif key == "certificateRefs":
                yield from (("Secret", reference["name"]) for reference in inner)
            elif key == "secretName":
                yield "Secret", inner
            else:
                yield from _named(inner)
    if isinstance(value, list):
        for item in value:
            yield from _named(item)
