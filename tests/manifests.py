"""The ladder that manifests climb without a cluster: each rung returns what it finds wrong, a
sentence each.

Here are the rungs of an API server: rendering, schemas, defaults, CEL. The operator's stand in
tests/operator_rules.py, ours in tests/manifest_rules.py.
"""

import contextlib
import copy
import functools
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import celpy
import jsonschema
import kubernetes_validate
import yaml
from celpy import celtypes
from celpy.adapter import json_to_cel
from yamllint import linter
from yamllint.config import YamlLintConfig

K8S = Path(__file__).parents[1] / "k8s"
OVERLAYS = sorted(
    str(path.parent.relative_to(K8S / "overlays"))
    for path in K8S.glob("overlays/**/kustomization.yaml")
    if path.parent.name != "values"
)
COMPONENTS = sorted(path.parent.name for path in K8S.glob("components/*/kustomization.yaml"))
YAMLLINT = YamlLintConfig(
    "{extends: default, rules: {line-length: {max: 160}, document-start: disable, comments:"
    " {min-spaces-from-content: 1}, braces: {max-spaces-inside: 1}, indentation: {indent-sequences:"
    " consistent}, octal-values: enable}}"
)
Document = dict[str, Any]
JOBS = ("prepare", "train", "tune", "evaluate", "nightly")
VALUES = {
    "serve_identity": "reader",
    "jobs_identity": "writer",
    "host": "melanoma.example.org",
    "redis": "rediss://melanoma-redis:6380",
}
"""What components ask of an overlay's values."""
CUSTOM_GROUPS = (
    "ray.io/v1",
    "gateway.networking.k8s.io/v1",
    "gateway.envoyproxy.io/v1alpha1",
    "monitoring.coreos.com/v1",
)
CORE_GROUPS = (
    "v1",
    "apps/v1",
    "policy/v1",
    "networking.k8s.io/v1",
    "rbac.authorization.k8s.io/v1",
    "batch/v1",
    "scheduling.k8s.io/v1",
)


def render(overlay: str, *, below: Path = K8S) -> list[Document]:
    """Return the documents of an overlay as `kubectl kustomize` gives them.

    Args:
        overlay: its folder in k8s/overlays.
        below: the folder k8s, or a copy of it.
    """
    return render_folder(below / "overlays" / overlay)


def world(overlay: str) -> list[Document]:
    """Return the documents of an overlay, for a job with those of the jobs' namespace."""
    cluster, _, purpose = overlay.partition("/")
    jobs = purpose in JOBS
    return [*(render(f"{cluster}/jobs") if jobs else []), *render(overlay)]


def combined(
    namespace: str, resources: Sequence[str], components: Sequence[str], **more: Any
) -> list[Document]:
    """Return the documents of an overlay that is no file.

    Args:
        namespace: of its documents.
        resources: folders below k8s/.
        components: names of components.
        more: what else its kustomization.yaml says.
    """
    with tempfile.TemporaryDirectory() as folder:
        inside = os.path.relpath(K8S, Path(folder).resolve())
        kustomization = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "namespace": namespace,
            "resources": [f"{inside}/{name}" for name in resources],
            "components": [f"{inside}/components/{name}" for name in components],
            "configMapGenerator": [
                {
                    "name": "melanoma-values",
                    "options": {
                        "disableNameSuffixHash": True,
                        "annotations": {"config.kubernetes.io/local-config": "true"},
                    },
                    "literals": [f"{key}={value}" for key, value in VALUES.items()],
                }
            ],
            **more,
        }
        (Path(folder) / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        return render_folder(Path(folder))


def render_folder(folder: Path) -> list[Document]:
    """Return the documents of a kustomization as `kubectl kustomize` gives them."""
    kubectl = Path(sys.executable).with_name("kubectl")
    done = subprocess.run(
        [kubectl, "kustomize", folder],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def yamllint_findings(text: str) -> list[str]:
    """Check how a file is written."""
    return [str(problem) for problem in linter.run(text, YAMLLINT)]


def hadolint_findings(text: str) -> str:
    """Check a Dockerfile."""
    command = [Path(sys.executable).with_name("hadolint"), "--no-color", "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False).stdout


def of_kind(documents: list[Document], kind: str) -> list[Document]:
    """Return the documents of one kind."""
    return [document for document in documents if document["kind"] == kind]


def core_findings(documents: list[Document]) -> Iterator[str]:
    """Check the core kinds against Kubernetes' own schemas, with no field that they do not know,
    and that no other kind slips through."""
    for document in documents:
        if document["apiVersion"] not in (*CORE_GROUPS, *CUSTOM_GROUPS):
            yield (
                f"{document['kind']} must be of a version that is known here, it is of"
                f" {document['apiVersion']}"
            )
        if document["kind"] == "PodDisruptionBudget" and "minAvailable" not in document["spec"]:
            yield (
                "a budget for pods whose owner cannot be scaled must say minAvailable: any other"
                " allows no disruption ever"
            )
        if document["apiVersion"] in CORE_GROUPS:
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    kubernetes_validate.validate(document, "1.37", strict=True)
            except kubernetes_validate.ValidationError as error:
                yield (
                    f"{document['kind']} {document['metadata']['name']}:"
                    f" {'.'.join(map(str, error.path))}: {error.message}"
                )


def crd_findings(documents: list[Document], crds: Path) -> Iterator[str]:
    """Check custom kinds against the definitions in a folder, defaults first and CEL rules last, as
    an API server does."""
    for definition in _definitions(crds):
        for version in definition["spec"]["versions"]:
            schema = version["schema"]["openAPIV3Schema"]
            for document in documents:
                if _kind(document) == (
                    definition["spec"]["group"],
                    version["name"],
                    definition["spec"]["names"]["kind"],
                ):
                    yield from _schema_findings(
                        schema, _with_defaults(schema, copy.deepcopy(document))
                    )


@functools.cache
def _definitions(folder: Path) -> list[Document]:
    return [
        document
        for path in sorted(folder.glob("*.yaml"))
        for found in yaml.load_all(path.read_text(), yaml.CSafeLoader)
        for document in (found["items"] if found and found["kind"] == "List" else [found])
        if document and document["kind"] == "CustomResourceDefinition"
    ]


def _kind(document: Document) -> tuple[str, str, str]:
    group, _, version = document["apiVersion"].rpartition("/")
    return group, version, document["kind"]


def _schema_findings(schema: dict[str, Any], whole: Document) -> Iterator[str]:
    for error in jsonschema.Draft202012Validator(_strict(schema)).iter_errors(whole):
        yield f"{whole['kind']}: {'.'.join(map(str, error.path))}: {error.message[:200]}"
    yield from _cel_findings(schema, whole, whole["kind"])


def custom_kinds(documents: list[Document]) -> set[tuple[str, str, str]]:
    """Return group, version and kind of every document that only a custom resource definition
    describes."""
    return {_kind(document) for document in documents if document["apiVersion"] not in CORE_GROUPS}


def defined_kinds(crds: Path) -> set[tuple[str, str, str]]:
    """Return group, version and kind of what the definitions in a folder describe."""
    return {
        (definition["spec"]["group"], version["name"], definition["spec"]["names"]["kind"])
        for definition in _definitions(crds)
        for version in definition["spec"]["versions"]
    }


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
    """Return a schema that refuses keys it does not know; what Kubernetes writes differently is put
    in JSON Schema's words."""
    if not isinstance(schema, dict):
        return schema
    made: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "properties":
            made[key] = {
                name: (
                    {"type": "object"} if top and name == "metadata" else _strict(inner, top=False)
                )
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
        try:
            holds = program.evaluate({"self": json_to_cel(value)}) == celtypes.BoolType(True)
        except celpy.CELEvalError:  # an API server refuses what its rule cannot judge
            holds = False
        if not holds:
            yield f"{place}: {rule.get('message', rule['rule'])}"
    if isinstance(value, dict):
        for name, inner in schema.get("properties", {}).items():
            if name in value:
                yield from _cel_findings(inner, value[name], f"{place}.{name}")
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _cel_findings(schema.get("items", {}), item, f"{place}.{index}")


def series_asked_for(documents: list[Document]) -> Iterator[tuple[str, set[str]]]:
    """Give each series that alerts or the dashboard ask Prometheus for, with the labels that they
    pick or sum by."""
    (rules,) = of_kind(documents, "PrometheusRule")
    asked = [rule["expr"] for group in rules["spec"]["groups"] for rule in group["rules"]]
    (board,) = (
        json.loads(document["data"]["melanoma.json"])
        for document in of_kind(documents, "ConfigMap")
        if document["metadata"]["name"] == "melanoma-dashboard"
    )
    asked += [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    for text in asked:
        for summed, name, picked in re.findall(
            r"(?:by \(([^)]+)\) \((?:rate\()?)?(\bray_\w+)(?:\{([^}]*)\})?", text
        ):
            yield name, {*re.findall(r"\w+", summed), *re.findall(r"(\w+)=", picked)}


def documented_secrets() -> set[str]:
    """Return the secrets that the documentation tells to make."""
    text = (K8S.parent / "docs" / "kubernetes" / "production.md").read_text()
    return set(re.findall(r"create secret \S+ (\S+)", text))


def rays(documents: list[Document]) -> list[Document]:
    """Return the RayServices and RayJobs, among them the jobs that a RayCronJob makes."""
    nightly = [
        {**document, "kind": "RayJob", "spec": document["spec"]["jobTemplate"]}
        for document in of_kind(documents, "RayCronJob")
    ]
    return [*of_kind(documents, "RayService"), *of_kind(documents, "RayJob"), *nightly]


def filled_in(document: Document, crds: Path) -> list[str]:
    """Return what an API server would write into the lists of a document.

    GitOps tools compare lists as they are, and would find a difference there for ever.
    """
    return [
        place
        for definition in _definitions(crds)
        for version in definition["spec"]["versions"]
        if _kind(document)
        == (definition["spec"]["group"], version["name"], definition["spec"]["names"]["kind"])
        for place in _added(
            document,
            _with_defaults(version["schema"]["openAPIV3Schema"], copy.deepcopy(document)),
            "",
            within=False,
        )
    ]


def _added(before: Any, after: Any, place: str, *, within: bool) -> Iterator[str]:
    if isinstance(after, dict):
        for key, value in after.items():
            if key in before:
                yield from _added(before[key], value, f"{place}.{key}", within=within)
            elif within:
                yield f"{place}.{key}"
    elif isinstance(after, list):
        for index, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from _added(old, new, f"{place}[{index}]", within=True)


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


def containers_of(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the containers of a pod, with those that start before the others."""
    return [*spec.get("initContainers", []), *spec["containers"]]


def planted(documents: list[Document], kind: str, plant: Callable[[Any], object]) -> list[Document]:
    """Change the first document of a kind, or the one that is named, kind/name."""
    changed, (kind, _, name) = copy.deepcopy(documents), kind.partition("/")
    plant(
        next(
            document
            for document in of_kind(changed, kind)
            if name in ("", document["metadata"]["name"])
        )
    )
    return changed
