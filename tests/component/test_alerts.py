"""Prometheus itself judges the alerts: it understands them, each fires when it should, and none
fires on a healthy service.

The tests skip if `promtool` is not installed; it comes with Prometheus.
"""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.manifests import Document, of_kind

HOUR = 60
DAYS = 13
DECISIONS = "ray_melanoma_decisions_total"
HEALTHY_CLASSIFIER = (
    'ray_serve_deployment_replica_healthy{application="melanoma", deployment="Classifier"}'
)
STAGE, DISTANCE = "ray_melanoma_stage_seconds_bucket", "ray_melanoma_feature_distance"
HEAD = "kube_pod_start_time"
JOB = 'kuberay_job_deployment_status{namespace="melanoma-jobs", name="melanoma-train"'
CERTIFICATE = "certmanager_certificate_expiration_timestamp_seconds"
Series = dict[str, str]
HEALTHY: Series = {
    HEALTHY_CLASSIFIER: "1x600",
    f'{DECISIONS}{{decision="refer"}}': "0+10x600",
    f'{DECISIONS}{{decision="no_refer"}}': "0+90x600",
    'ray_serve_num_http_error_requests_total{error_code="503"}': "0+1x600",
    f'{STAGE}{{stage="predict", le="1.0"}}': "0+100x600",
    f'{STAGE}{{stage="predict", le="+Inf"}}': "0+100x600",
    f'{DISTANCE}_bucket{{le="1.0"}}': "0+95x600",
    f"{DISTANCE}_count": "0+100x600",
    "ray_melanoma_invalid_key_lines": "0x600",
    f'{HEAD}{{namespace="melanoma", pod="melanoma-head-a"}}': "1x600",
    f'{JOB}, deployment_status="Running"}}': "1x600",
    'kube_pod_status_reason{namespace="melanoma", reason="Evicted"}': "0x600",
    'kubelet_evictions{eviction_signal="nodefs.available"}': "3x600",
    f'{CERTIFICATE}{{namespace="melanoma"}}': "9999999x600",
    'redis_up{job="melanoma-redis"}': "1x600",
}
"""A value a minute, as promtool writes them."""

FIRING: list[tuple[str, Series, int]] = [
    (
        "MelanomaNetworkBroken",
        {'ray_melanoma_refusals_total{code="model_error"}': "0x10 5x20"},
        15,
    ),
    (
        "MelanomaTurnsRequestsAway",
        {'ray_serve_num_http_error_requests_total{error_code="503"}': "0+6x60"},
        30,
    ),
    (
        "MelanomaSlow",
        {
            f'{STAGE}{{stage="predict", le="1.0"}}': "0x60",
            f'{STAGE}{{stage="predict", le="5.0"}}': "0+90x60",
            f'{STAGE}{{stage="predict", le="10.0"}}': "0+100x60",
            f'{STAGE}{{stage="predict", le="+Inf"}}': "0+100x60",
        },
        30,
    ),
    (
        "MelanomaImagesDrift",
        {f'{DISTANCE}_bucket{{le="1.0"}}': "0+70x600", f"{DISTANCE}_count": "0+100x600"},
        8 * HOUR,
    ),
    (
        "MelanomaReferralsChange",
        {
            f'{DECISIONS}{{decision="refer"}}': f"0+10x{DAYS * 24} {DAYS * 240}+40x24",
            f'{DECISIONS}{{decision="no_refer"}}': f"0+90x{DAYS * 24} {DAYS * 2160}+60x24",
        },
        (DAYS + 1) * 24 * HOUR,
    ),
    ("MelanomaServesNothing", {HEALTHY_CLASSIFIER: "1x5 0x20"}, 10),
    ("MelanomaInvalidKeys", {"ray_melanoma_invalid_key_lines": "0x5 1x20"}, 15),
    (
        "MelanomaPodEvicted",
        {'kube_pod_status_reason{namespace="melanoma-jobs", reason="Evicted"}': "1x20"},
        5,
    ),
    # A pod of Ray, which KubeRay deletes before it is seen.
    (
        "MelanomaPodEvicted",
        {'kubelet_evictions{eviction_signal="nodefs.available"}': "3x5 4x20"},
        8,
    ),
    (
        "MelanomaHeadRestarts",
        {
            f'{HEAD}{{namespace="melanoma", pod="melanoma-head-{name}"}}': "1x20"
            for name in ("a", "b", "c")
        },
        10,
    ),
    ("MelanomaJobFailed", {f'{JOB}, deployment_status="Failed"}}': "1x20"}, 5),
    ("MelanomaJobFailed", {f'{JOB}, deployment_status="ValidationFailed"}}': "1x20"}, 5),
    # With and without honorLabels.
    (
        "MelanomaCertificateEnds",
        {f'{CERTIFICATE}{{namespace="melanoma"}}': f"{13 * 86400}x20"},
        5,
    ),
    (
        "MelanomaCertificateEnds",
        {
            f'{CERTIFICATE}{{namespace="cert-manager", exported_namespace="melanoma"}}': (
                f"{13 * 86400}x20"
            )
        },
        5,
    ),
    ("MelanomaRedisDown", {'redis_up{job="melanoma-redis"}': "1x5 0x20"}, 10),
]
"""What makes each alert fire, and the minute in which it has."""


@pytest.fixture(scope="module")
def rules(serving: list[Document]) -> dict[str, Any]:
    (found,) = of_kind(serving, "PrometheusRule")
    return dict(found["spec"])


@pytest.fixture(scope="module")
def alerts(rules: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for group in rules["groups"] for rule in group["rules"]}


def _promtool(*words: str | Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not here (it comes with prometheus)")
    done = subprocess.run([promtool, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _judge(
    folder: Path, rules: dict[str, Any], series: Series, told: list[dict[str, Any]], step: str
) -> None:
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
    test = {
        "interval": step,
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": told,
    }
    tests = {"rule_files": ["rules.yaml"], "evaluation_interval": step, "tests": [test]}
    (folder / "tests.yaml").write_text(yaml.safe_dump(tests))
    _promtool("test", "rules", folder / "tests.yaml")


def test_prometheus_understands_the_rules(rules: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    _promtool("check", "rules", tmp_path / "rules.yaml")


def test_every_alert_is_tried(alerts: dict[str, dict[str, Any]]) -> None:
    assert {name for name, *_ in FIRING} == set(alerts)


@pytest.mark.parametrize(("name", "series", "minute"), FIRING)
def test_an_alert_fires(
    name: str,
    series: Series,
    minute: int,
    alerts: dict[str, dict[str, Any]],
    rules: dict[str, Any],
    tmp_path: Path,
) -> None:
    job = {"name": "melanoma-train"} if name == "MelanomaJobFailed" else {}
    summary = alerts[name]["annotations"]["summary"].replace("{{ $labels.name }}", "melanoma-train")
    expected = {"exp_labels": alerts[name]["labels"] | job, "exp_annotations": {"summary": summary}}
    told = {"eval_time": f"{minute}m", "alertname": name, "exp_alerts": [expected]}
    _judge(tmp_path, rules, HEALTHY | series, [told], "1h" if minute > DAYS * 24 * HOUR else "1m")


def test_no_alert_fires_on_a_healthy_service(rules: dict[str, Any], tmp_path: Path) -> None:
    told = [
        {"eval_time": f"{minute}m", "alertname": name, "exp_alerts": []}
        for name in {name for name, *_ in FIRING}
        for minute in (30, 9 * HOUR)
    ]
    _judge(tmp_path, rules, HEALTHY, told, "1m")
