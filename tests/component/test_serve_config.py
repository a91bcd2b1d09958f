import copy
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import yaml

from melanoma.errors import SettingError
from serve import classifier, explainer
from serve.settings import (
    CONFIG,
    DEPLOYMENTS,
    check_config,
    classifier_in_ingress,
    deployment_options,
    read_config,
)

Change = Callable[[dict[str, Any]], object]


def _classifier(config: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = config["applications"][0]["deployments"][1]
    return found


def test_the_config_is_right_and_names_the_graph() -> None:
    config = read_config()
    assert sorted(deployment_options(config)) == sorted(DEPLOYMENTS)
    module, _, name = config["applications"][0]["import_path"].partition(":")
    assert callable(getattr(import_module(module), name))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda c: c.update(http_option={}), "http_options"),
        (lambda c: c["http_options"].update(request_timeout=3), "request_timeout_s"),
        (lambda c: c["logging_config"].update(access_log=True), "access_log"),
        (lambda c: c["applications"][0].update(routes="/"), "applications.0.routes"),
        (lambda c: c["applications"][0]["args"].update(bundel="x"), "bundel"),
        (lambda c: _classifier(c).update(max_ongoing_request=3), "max_ongoing_requests"),
        (lambda c: _classifier(c).update(backpressure_config={"status": 503}), "status_code"),
        (lambda c: _classifier(c)["ray_actor_options"].update(num_cpu=3), "num_cpus"),
        (lambda c: _classifier(c)["autoscaling_config"].update(min_replica=3), "min_replicas"),
        (lambda c: _classifier(c)["autoscaling_config"].update(min_replicas=30), "max_replicas"),
        (lambda c: _classifier(c).update(max_ongoing_requests=0), "max_ongoing_requests"),
        (lambda c: _classifier(c).update(name="Clasifier"), "Clasifier"),
    ],
)
def test_what_serve_would_pass_over_is_refused(change: Change, named: str) -> None:
    config = copy.deepcopy(yaml.safe_load(CONFIG.read_text()))
    change(config)
    with pytest.raises(SettingError, match=named):
        check_config(config)


def test_the_classifier_can_be_a_part_of_the_ingress() -> None:
    config = classifier_in_ingress(read_config())
    options = deployment_options(config)
    assert sorted(options) == ["Explainer", "Ingress"]
    assert options["Ingress"]["ray_actor_options"] == {"num_cpus": 1}
    config["applications"][0]["args"]["classifier"] = "deployment"
    with pytest.raises(SettingError, match="must name the deployments"):
        check_config(config)


def test_nothing_queues_without_end() -> None:
    """Serve's own default is an endless queue."""
    for name, options in deployment_options(read_config()).items():
        assert options["max_queued_requests"] > 0, name
        scaling = options["autoscaling_config"]
        assert (
            min(scaling["upscale_delay_s"], scaling["downscale_delay_s"])
            >= scaling["look_back_period_s"]
        ), name


def test_a_bundle_s_address_with_a_secret_is_refused_without_repeating_it() -> None:
    config = read_config()
    config["applications"][0]["args"]["bundle"] = "s3://KEY:HUSHHUSH@bucket/bundle"
    with pytest.raises(SettingError, match=r"applications|bundle") as caught:
        check_config(config)
    assert "workload identity" in str(caught.value)
    assert "HUSHHUSH" not in str(caught.value)


def test_queues_follow_from_the_batch_sizes() -> None:
    """Serve reads plain numbers, so the file holds them; these are the multiples they must be."""
    options = deployment_options(read_config())
    multiples = {
        "Ingress": (classifier.MAX_BATCH, 3, 2, 2),
        "Classifier": (classifier.MAX_BATCH, classifier.BATCHES_AT_ONCE, 4, 1),
        "Explainer": (explainer.MAX_BATCH, 2, 4, 1),
    }
    for name, (batch, ongoing, queued, target) in multiples.items():
        assert options[name]["max_ongoing_requests"] == ongoing * batch
        assert options[name]["max_queued_requests"] == queued * batch
        scaling = options[name]["autoscaling_config"]
        assert scaling["target_ongoing_requests"] == target * batch
    apart = options["Classifier"]
    assert apart["max_ongoing_requests"] + apart["max_queued_requests"] == classifier.MAX_IMAGES
    on_cpu = classifier.MAX_CPU_BATCH * classifier.CPU_BATCHES_AT_ONCE
    assert on_cpu <= apart["max_ongoing_requests"]
