"""The ladder that manifests climb without a cluster: each rung returns what it finds wrong, a sentence each.

The rungs are those of an API server (schemas, defaults, CEL) and of the KubeRay operator, whose own rules no schema holds; re-implemented from
ray-operator/controllers/ray/utils/validation.go of KubeRay 1.7.
"""

import contextlib
import copy
import importlib
import io
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import celpy
import jsonschema
import kubernetes_validate
import yaml
from celpy import celtypes
from celpy.adapter import json_to_cel
from packaging.version import Version

from serve.settings import check_config

K8S = Path(__file__).parents[1] / "k8s"
OVERLAYS = sorted(
    str(path.parent.relative_to(K8S / "overlays"))
    for path in K8S.glob("overlays/*/*/kustomization.yaml")
    if path.parent.name not in ("images", "workers")
)
Document = dict[str, Any]
MAX_NAME = {"RayCluster": 53, "RayService": 47, "RayJob": 47, "RayCronJob": 36}
CUSTOM_GROUPS = (
    "ray.io/v1", "gateway.networking.k8s.io/v1", "gateway.envoyproxy.io/v1alpha1", "monitoring.coreos.com/v1",
)  # fmt: skip
CORE_GROUPS = ("v1", "apps/v1", "policy/v1", "networking.k8s.io/v1", "rbac.authorization.k8s.io/v1", "batch/v1")


def render(overlay: str) -> list[Document]:
    """Return the documents of an overlay as `kubectl kustomize` gives them."""
    kubectl = Path(sys.executable).with_name("kubectl")
    done = subprocess.run(
        [kubectl, "kustomize", K8S / "overlays" / overlay], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def of_kind(documents: list[Document], kind: str) -> list[Document]:
    """Return the documents of one kind."""
    return [document for document in documents if document["kind"] == kind]


def core_findings(documents: list[Document]) -> Iterator[str]:
    """Check the core kinds against Kubernetes' own schemas, with no field that they do not know, and that no other kind slips through."""
    for document in documents:
        if document["apiVersion"] not in (*CORE_GROUPS, *CUSTOM_GROUPS):
            yield f"{document['kind']} must be of a version that is known here, it is of {document['apiVersion']}"
        if document["kind"] == "PodDisruptionBudget" and "minAvailable" not in document["spec"]:
            yield "a budget for pods whose owner cannot be scaled must say minAvailable: any other allows no disruption ever"
        if document["apiVersion"] in CORE_GROUPS:
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    kubernetes_validate.validate(document, "1.37", strict=True)
            except kubernetes_validate.ValidationError as error:
                yield f"{document['kind']} {document['metadata']['name']}: {'.'.join(map(str, error.path))}: {error.message}"


def crd_findings(documents: list[Document], crds: Path) -> Iterator[str]:
    """Check KubeRay's kinds against its custom resource definitions, defaults first and CEL rules last, as an API server does."""
    for path in sorted(crds.glob("*.yaml")):
        definition = yaml.safe_load(path.read_text())
        version = next(version for version in definition["spec"]["versions"] if version["name"] == "v1")
        schema = version["schema"]["openAPIV3Schema"]
        for document in of_kind(documents, definition["spec"]["names"]["kind"]):
            whole = _with_defaults(schema, copy.deepcopy(document))
            strict = jsonschema.Draft202012Validator(_strict(schema))
            for error in strict.iter_errors(whole):
                yield f"{document['kind']}: {'.'.join(map(str, error.path))}: {error.message[:200]}"
            yield from _cel_findings(schema, whole, document["kind"])


def _with_defaults(schema: dict[str, Any], value: Any) -> Any:
    if isinstance(value, dict):
        for name, inner in schema.get("properties", {}).items():
            if name not in value and "default" in inner:
                value[name] = copy.deepcopy(inner["default"])
            if name in value:
                value[name] = _with_defaults(inner, value[name])
        return {name: inner for name, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_with_defaults(schema.get("items", {}), item) for item in value]
    return value


def _strict(schema: Any, *, top: bool = True) -> Any:
    """Return a schema that refuses keys it does not know; what Kubernetes writes differently is put in JSON Schema's words."""
    if not isinstance(schema, dict):
        return schema
    made: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "properties":
            made[key] = {
                name: {"type": "object"} if top and name == "metadata" else _strict(inner, top=False)
                for name, inner in value.items()
            }
        elif key in ("items", "additionalProperties"):
            made[key] = _strict(value, top=False)
        elif key in (
            "required",
            "enum",
            "type",
            "minimum",
            "maximum",
            "minLength",
            "maxLength",
            "pattern",
            "minItems",
            "maxItems",
        ):
            made[key] = value
    if schema.get("x-kubernetes-int-or-string"):
        made["type"] = ["integer", "string"]
    is_open = "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields")
    if "properties" in schema and not is_open:
        made["additionalProperties"] = False
    return made


def _cel_findings(schema: Any, value: Any, place: str) -> Iterator[str]:
    for rule in schema.get("x-kubernetes-validations", []):
        if "oldSelf" in rule["rule"]:  # of changes only
            continue
        environment = celpy.Environment()
        program = environment.program(environment.compile(rule["rule"]))
        if program.evaluate({"self": json_to_cel(value)}) != celtypes.BoolType(True):
            yield f"{place}: {rule.get('message', rule['rule'])}"
    if isinstance(value, dict):
        for name, inner in schema.get("properties", {}).items():
            if name in value:
                yield from _cel_findings(inner, value[name], f"{place}.{name}")
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _cel_findings(schema.get("items", {}), item, f"{place}.{index}")


def cluster_of(document: Document) -> dict[str, Any]:
    """Return the cluster that a RayService or RayJob makes."""
    spec = document["spec"]
    found: dict[str, Any] = spec.get("rayClusterConfig") or spec["rayClusterSpec"]
    return found


def groups_of(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the head group and the worker groups of a cluster."""
    return [cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", [])]


def pod_specs(document: Document) -> Iterator[dict[str, Any]]:
    """Give the pod specifications of a RayService or RayJob."""
    for group in groups_of(cluster_of(document)):
        yield group["template"]["spec"]
    if "submitterPodTemplate" in document["spec"]:
        yield document["spec"]["submitterPodTemplate"]["spec"]


def operator_findings(document: Document) -> Iterator[str]:
    """Check what the operator refuses although every schema allows it."""
    kind, name, spec = document["kind"], document["metadata"]["name"], document["spec"]
    cluster = cluster_of(document)
    if len(name) > MAX_NAME[kind] or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield f"the name {name} must be a DNS label of at most {MAX_NAME[kind]} letters"
    yield from _cluster_findings(cluster)
    if "upgradeStrategy" in cluster:
        yield "a cluster inside another resource must not have an upgradeStrategy"
    yield from (_service_findings if kind == "RayService" else _job_findings)(spec, cluster)


def _cluster_findings(cluster: dict[str, Any]) -> Iterator[str]:
    version = Version(cluster.get("rayVersion") or "0")
    if cluster.get("authOptions", {}).get("mode") == "token" and version < Version("2.52.0"):
        yield "authOptions.mode token needs a rayVersion of at least 2.52.0"
    autoscaling = cluster.get("enableInTreeAutoscaling", False)
    second = cluster.get("autoscalerOptions", {}).get("version", "v2") == "v2"
    for group in groups_of(cluster):
        policy = group["template"]["spec"].get("restartPolicy", "Never")
        if autoscaling and second and policy != "Never":
            yield "with autoscaler v2 the restartPolicy of every pod must be Never"
        if "resources" in group and {"num-cpus", "num-gpus", "memory", "resources"} & set(
            group.get("rayStartParams", {})
        ):
            yield "a group has resources either of its own or in rayStartParams"
        if "labels" in group.get("rayStartParams", {}):
            yield "labels must not stand in rayStartParams"
    for group in cluster.get("workerGroupSpecs", []):
        least, most = group.get("minReplicas", 0), group.get("maxReplicas", 2**31 - 1)
        if not 0 <= least <= most:
            yield f"minReplicas must be from 0 to maxReplicas, got {least} and {most}"
        if ({"idleTimeoutSeconds", "priority"} & set(group)) and not (autoscaling and second):
            yield "idleTimeoutSeconds and priority of a group need autoscaler v2"
    if "gcsFaultToleranceOptions" in cluster:
        head = cluster["headGroupSpec"]
        names = {
            env["name"] for container in head["template"]["spec"]["containers"] for env in container.get("env", [])
        }
        if "redis-password" in head.get("rayStartParams", {}) or names & {"REDIS_PASSWORD", "RAY_REDIS_ADDRESS"}:
            yield "with gcsFaultToleranceOptions Redis must be set nowhere else"


def _service_findings(spec: dict[str, Any], cluster: dict[str, Any]) -> Iterator[str]:
    if cluster["headGroupSpec"].get("headService", {}).get("metadata", {}).get("name"):
        yield "headService.metadata.name must be left to the operator"
    strategy = spec.get("upgradeStrategy", {})
    if strategy.get("type") == "NewClusterWithIncrementalUpgrade":
        options = strategy.get("clusterUpgradeOptions", {})
        if not cluster.get("enableInTreeAutoscaling"):
            yield "an incremental upgrade needs enableInTreeAutoscaling"
        if not options.get("gatewayClassName") or options.get("intervalSeconds", 0) <= 0:
            yield "an incremental upgrade needs a gatewayClassName and an interval"
        if not 0 < options.get("stepSizePercent", 0) <= options.get("maxSurgePercent", 100):
            yield "stepSizePercent must be from 1 to maxSurgePercent"


def _job_findings(spec: dict[str, Any], cluster: dict[str, Any]) -> Iterator[str]:
    shuts_down = spec.get("shutdownAfterJobFinishes", False)
    if (spec.get("ttlSecondsAfterFinished", 0) or spec.get("suspend")) and not shuts_down:
        yield "ttlSecondsAfterFinished and suspend need shutdownAfterJobFinishes"
    if "deletionStrategy" in spec and shuts_down:
        yield "deletionStrategy excludes shutdownAfterJobFinishes"
    mode = spec.get("submissionMode", "K8sJobMode")
    if mode == "SidecarMode" and {"submitterPodTemplate", "submitterConfig", "clusterSelector"} & set(spec):
        yield "SidecarMode has no submitter of its own"
    if spec.get("backoffLimit", 0) and (mode == "InteractiveMode" or "clusterSelector" in spec):
        yield "backoffLimit needs a cluster for each try"
    if spec.get("backoffLimit", 0) or spec.get("submitterConfig", {}).get("backoffLimit", 2):
        yield "an exit code is a finding here: nothing may be tried again"


def hardening_findings(document: Document) -> Iterator[str]:
    """Check what Pod Security `restricted` asks, and more: a read-only root, bounded memory, no token where none is needed."""
    for spec in pod_specs(document):
        if not spec.get("securityContext", {}).get("runAsNonRoot"):
            yield "a pod must not run as root"
        if spec.get("securityContext", {}).get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield "a pod must have the seccomp profile RuntimeDefault"
        for container in spec["containers"]:
            locked = container.get("securityContext", {})
            if locked.get("allowPrivilegeEscalation", True) or not locked.get("readOnlyRootFilesystem"):
                yield f"{container['name']} must have a read-only root and no way to more rights"
            if locked.get("capabilities", {}).get("drop") != ["ALL"]:
                yield f"{container['name']} must drop all capabilities"
            resources = container.get("resources", {})
            if not resources.get("limits") or resources["limits"].get("memory") != resources.get("requests", {}).get(
                "memory"
            ):
                yield f"{container['name']} must ask for as much memory as it may take"
        is_head = any(container["name"] == "ray-head" for container in spec["containers"])
        if not is_head and spec.get("automountServiceAccountToken", True):
            yield "only the head may hold a token for the API server"


def serve_findings(document: Document) -> Iterator[str]:
    """Check a RayService's Serve config strictly, that what it imports is there, and that its replicas fit the workers."""
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
        ("CPU", "num_cpus", limits["cpu"]),
        ("GPU", "num_gpus", limits.get("nvidia.com/gpu", 0)),
    ):
        wanted = dict.fromkeys(("min_replicas", "max_replicas"), 0.0)
        for deployment in values["applications"][0]["deployments"]:
            for edge in wanted:
                wanted[edge] += deployment["autoscaling_config"][edge] * deployment["ray_actor_options"].get(option, 0)
        for edge, workers in (("min_replicas", "minReplicas"), ("max_replicas", "maxReplicas")):
            if wanted[edge] > float(there) * group[workers]:
                yield f"{edge} of all deployments need {wanted[edge]} {resource}s, {group[workers]} workers have {float(there) * group[workers]}"
    ports = {port["containerPort"] for port in group["template"]["spec"]["containers"][0]["ports"]}
    if values["http_options"]["port"] not in ports or values["http_options"]["host"] != "0.0.0.0":
        yield "Serve must listen on the port that the workers open, and not on loopback"


def reference_findings(documents: list[Document], *, given: set[str]) -> Iterator[str]:
    """Check that what is named is there: secrets, config maps, accounts, volumes, and labels that selectors look for.

    Args:
        documents: of one overlay.
        given: secrets that the README tells to make.
    """
    made = {(document["kind"], document["metadata"]["name"]) for document in documents}
    labels: list[dict[str, str]] = []
    for document in (*of_kind(documents, "RayService"), *of_kind(documents, "RayJob")):
        labels += [group["template"]["metadata"]["labels"] for group in groups_of(cluster_of(document))]
        labels += [
            document["spec"][name]["metadata"]["labels"]
            for name in ("submitterPodTemplate",)
            if name in document["spec"]
        ]
        for spec in pod_specs(document):
            if ("ServiceAccount", spec["serviceAccountName"]) not in made:
                yield f"the account {spec['serviceAccountName']} must be made"
            volumes = {volume["name"] for volume in spec.get("volumes", [])}
            for container in spec["containers"]:
                for mount in container.get("volumeMounts", []):
                    if mount["name"] not in volumes:
                        yield f"the volume {mount['name']} must be there to be mounted"
        for kind, name in _named(document):
            if kind == "ConfigMap" and (kind, name) not in made:
                yield f"the config map {name} must be made"
            if kind == "Secret" and name not in given:
                yield f"the secret {name} must be one that the README tells to make"
        cluster = cluster_of(document)
        tags = {
            container["image"].rpartition(":")[2] for spec in pod_specs(document) for container in spec["containers"]
        }
        if {tag.partition("-")[0] for tag in tags} != {cluster["rayVersion"]}:
            yield f"image tags {sorted(tags)} must be of the rayVersion {cluster['rayVersion']}"
    for kind in ("PodDisruptionBudget", "PodMonitor", "NetworkPolicy"):
        for document in of_kind(documents, kind):
            wanted = (document["spec"].get("selector") or document["spec"].get("podSelector", {})).get(
                "matchLabels", {}
            )
            # One policy is of serving alone, and part of what jobs share; one is of a Redis that others bring.
            elsewhere = "redis" in str(wanted) or ("serve" in str(wanted) and not of_kind(documents, "RayService"))
            if not elsewhere and not any(wanted.items() <= found.items() for found in labels):
                yield f"{kind} {document['metadata']['name']} selects no pod"


def _named(value: Any) -> Iterator[tuple[str, str]]:
    """Give every config map and secret that a document names."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("configMapRef", "configMapKeyRef"):
                yield "ConfigMap", inner["name"]
            elif key in ("secretRef", "secretKeyRef"):
                yield "Secret", inner["name"]
            elif key == "secretName":
                yield "Secret", inner
            else:
                yield from _named(inner)
    if isinstance(value, list):
        for item in value:
            yield from _named(item)
