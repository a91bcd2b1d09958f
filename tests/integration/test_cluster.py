"""The commands as jobs on a cluster with a token, everything in object storage; then the Serve
config on that cluster, with what the serving image has, and requests."""

import importlib.metadata
import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
import yaml

from melanoma.bundle.manifest import MANIFEST
from melanoma.data.dataset import open_prepared
from melanoma.evidence.operating_point import Decision
from melanoma.io.cache import CACHE
from melanoma.io.files import sha256_of
from melanoma.io.storage import RemotePath, publish, to_path
from ray_jobs.arguments import BAD_INPUT, DONE, FAILED, FOUND
from serve.environment import ENVIRONMENT
from tests import manifests
from tests.clusters import BIN, CREDENTIALS, Head, head_with_token, object_storage, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]
WRONG_TOKEN = "wrong_token"
QUICK = [
    "--preset",
    "smoke",
    "--set",
    "optim.epochs=2",
    "--set",
    "data.input_height=48",
    "--set",
    "data.input_width=64",
    "--set",
    "optim.batch_size=16",
]


@pytest.fixture(scope="module")
def bucket(phantom_source: Path) -> Iterator[str]:
    """A bucket that holds the images; the query behind its addresses."""
    with pytest.MonkeyPatch.context() as patch, object_storage("melanoma") as query:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        source = to_path(f"s3://melanoma/source?{query}")
        assert isinstance(source, RemotePath)
        publish(phantom_source, source)
        yield query


@pytest.fixture(scope="module")
def head(bucket: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with head_with_token(tmp_path_factory.mktemp("head"), **CREDENTIALS, **ENVIRONMENT) as head:
        yield head


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path_factory.getbasetemp() / "cache"))


def _melanoma(head: Head, *words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run a command as a person would, on the cluster."""
    return subprocess.run(
        [sys.executable, "-m", "ray_jobs.cli", *words, "--address", head.dashboard, "--json"],
        env=os.environ | head.environment | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def _at(path: str, bucket: str) -> str:
    return f"s3://melanoma/{path}?{bucket}"


@pytest.fixture(scope="module")
def dataset(head: Head, bucket: str) -> str:
    out = _at("dataset", bucket)
    words = _entrypoint(
        "cpu/prepare", {"s3://melanoma/source": _at("source", bucket), "s3://melanoma/dataset": out}
    )
    words += ["--size", "96", "--folds", "3", "--calibration-fraction", "0.45"]
    done = _melanoma(head, *words)
    assert done.returncode == DONE, done.stderr
    manifest = json.loads(done.stdout)  # the result alone: the log went to stderr
    assert manifest.pop("notes") == []
    assert manifest == json.loads((to_path(out) / "manifest.json").read_text())
    assert {path.name for path in to_path(out).iterdir()} == {
        "manifest.json",
        "notes.txt",
        "records.parquet",
        "rejected.csv",
        "shards",
    }
    return out


def _entrypoint(overlay: str, replaced: dict[str, str]) -> list[str]:
    """Return the words of an overlay's RayJob after `python -m ray_jobs.cli`, with places of this
    test for its own and without what no CPU can."""
    (job,) = manifests.of_kind(manifests.render(overlay), "RayJob")
    words = shlex.split(job["spec"]["entrypoint"].replace(" --gpu --weights imagenet", ""))[3:]
    return [replaced.get(word, word) for word in words]


@pytest.fixture(scope="module")
def trained_run(head: Head, bucket: str, dataset: str) -> str:
    runs = _at("runs", bucket)
    words = _entrypoint(
        "cpu/train", {"s3://melanoma/dataset": dataset, "s3://melanoma/runs": runs, "1-4": "1-2"}
    )
    done = _melanoma(head, *words, *QUICK)
    assert done.returncode == DONE, done.stderr
    return _at("runs/cpu", bucket)


def test_a_head_has_a_dashboard(head: Head) -> None:
    script = "import ray; from ray_jobs.cluster import has_dashboard; ray.init(); "
    done = subprocess.run(
        [sys.executable, "-c", script + "print(has_dashboard())"],
        env=os.environ | head.environment | {"RAY_ADDRESS": head.address},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stdout.split() == ["True"], done.stderr


def test_a_data_set_is_refused_where_one_is(head: Head, bucket: str, dataset: str) -> None:
    done = _melanoma(head, "data", "prepare", _at("source", bucket), dataset)
    assert done.returncode == BAD_INPUT
    assert "must be new or empty" in done.stderr


def test_a_run_in_object_storage_is_whole(trained_run: str) -> None:
    run = to_path(trained_run)
    assert {"run.json", "history.jsonl", "checkpoints", "bundle", "result.json", "tensorboard"} <= {
        path.name for path in run.iterdir()
    }
    assert len((run / "history.jsonl").read_text().splitlines()) == 2
    assert (run / "bundle" / MANIFEST).is_file()


def test_a_finished_run_is_only_reported(
    head: Head, bucket: str, dataset: str, trained_run: str
) -> None:
    done = _melanoma(head, "train", dataset, _at("runs", bucket), "--name", "cpu", *QUICK)
    assert done.returncode == DONE
    assert "is already finished" in done.stderr
    result = json.loads((to_path(trained_run) / "result.json").read_text())
    assert json.loads(done.stdout) == {**result, "bundle": str(to_path(trained_run) / "bundle")}


def test_evidence_is_written_there_and_every_look_is_logged(
    head: Head, bucket: str, dataset: str, trained_run: str
) -> None:
    bundle, out = trained_run.replace("?", "/bundle?"), _at("evidence", bucket)
    words = {
        "s3://melanoma/runs/cpu/bundle": bundle,
        "s3://melanoma/dataset": dataset,
        "s3://melanoma/evidence": out,
    }
    done = _melanoma(head, *_entrypoint("cpu/evaluate", words))
    assert done.returncode in (DONE, FOUND), done.stderr
    assert json.loads(done.stdout) == json.loads((to_path(out) / "report.json").read_text())
    data = open_prepared(to_path(dataset))
    assert (len(data.accesses("calibration")), len(data.accesses("test"))) == (1, 1)


@pytest.mark.drill
@pytest.mark.parametrize("cluster", ["cpu", "gpu"])
def test_a_search_runs_where_it_is_told(
    cluster: str, head: Head, bucket: str, dataset: str
) -> None:
    replaced = {
        "s3://melanoma/dataset": dataset,
        "s3://melanoma/runs": _at("runs", bucket),
        "40": "2",
        "60": "2",
        "4": "2",
    }
    words = _entrypoint(f"{cluster}/tune", replaced)
    done = _melanoma(head, *words, *QUICK, "--set", "optim.epochs=1", "--set", "loss.tau=0")
    assert done.returncode in (DONE, FOUND), done.stderr
    run = to_path(_at(f"runs/{cluster}_tune", bucket))
    assert {"best.json", "trials.parquet", "report.html", "bundle", "out_of_fold.parquet"} <= {
        p.name for p in run.iterdir()
    }


@pytest.mark.drill
def test_the_gpu_training_runs_where_it_is_told(head: Head, bucket: str, dataset: str) -> None:
    """All of it but the GPU and the weights from the hub."""
    words = _entrypoint(
        "gpu/train",
        {"s3://melanoma/dataset": dataset, "s3://melanoma/runs": _at("runs", bucket), "2-8": "2"},
    )
    done = _melanoma(head, *words, *QUICK)
    assert done.returncode == DONE, done.stderr
    assert (to_path(_at("runs/gpu/bundle", bucket)) / MANIFEST).is_file()


def test_bad_input_keeps_its_exit_code_and_its_sentence(head: Head, bucket: str) -> None:
    done = _melanoma(head, "train", _at("nowhere", bucket), _at("runs", bucket))
    assert done.returncode == BAD_INPUT
    assert "must be a folder made by `melanoma data prepare`" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("words", "environment", "told"),
    [
        (["data", "prepare", "images", "/data/out"], {}, "must be an absolute path"),
        (
            ["data", "prepare", "/data/in", "/data/out"],
            {"RAY_AUTH_TOKEN_PATH": WRONG_TOKEN},
            "does not accept the token",
        ),
        (
            ["data", "prepare", "/data/in", "/data/out"],
            {"RAY_AUTH_MODE": "disabled"},
            "does not accept the token (RAY_AUTH_MODE is disabled)",
        ),
        (
            ["data", "prepare", "/data/in", "/data/out"],
            {"RAY_AUTH_TOKEN_PATH": "/nowhere/token"},
            "does not accept the token (/nowhere/token is missing)",
        ),
    ],
    ids=["a relative path", "a wrong token", "no token", "no token file"],
)
def test_what_cannot_be_submitted_is_told(
    head: Head,
    words: list[str],
    environment: dict[str, str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(WRONG_TOKEN).write_text("0" * 64)
    done = _melanoma(head, *words, **environment)
    assert done.returncode == BAD_INPUT, done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_a_head_that_is_away_is_told() -> None:
    away = Head("", "http://127.0.0.1:9", 0, {})
    done = _melanoma(away, "data", "prepare", "/data/in", "/data/out")
    assert done.returncode == BAD_INPUT
    assert "http://127.0.0.1:9 does not answer" in done.stderr


def _ray_job(head: Head, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run Ray's own command for jobs."""
    return subprocess.run(
        [BIN / "ray", "job", words[0], "--address", head.dashboard, *words[1:]],
        env=os.environ | head.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=manifests.K8S.parent,
    )


def test_rays_own_command_submits_it_too(
    head: Head, bucket: str, dataset: str, trained_run: str
) -> None:
    """As the README says: the same command, and of exit codes 0 and 1 only."""
    plain = ["submit", "--working-dir", ".", "--", "python", "-m", "ray_jobs.cli", "train"]
    done = _ray_job(head, *plain, dataset, _at("runs", bucket), "--name", "cpu", *QUICK)
    assert (done.returncode, "is already finished" in done.stdout) == (0, True), (
        done.stdout + done.stderr
    )
    refused = _ray_job(head, *plain, _at("nowhere", bucket), _at("runs", bucket))
    assert (
        refused.returncode,
        "must be a folder made by `melanoma data prepare`" in refused.stdout,
    ) == (1, True), refused.stdout


def _prepare(
    head: Head, source: str, out: str, *more: str, stdin: int = subprocess.DEVNULL
) -> "tuple[subprocess.Popen[str], str]":
    """Submit a job and return the command that follows it, and the job."""
    command = [
        sys.executable,
        "-m",
        "ray_jobs.cli",
        "data",
        "prepare",
        source,
        out,
        *more,
    ]
    process = subprocess.Popen(
        [*command, "--address", head.dashboard],
        env=os.environ | head.environment,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # background jobs of a shell ignore it
    )
    assert process.stderr is not None
    return process, next(line.split()[1] for line in process.stderr if line.startswith("job "))


def test_a_job_goes_on_when_nobody_is_there_to_ask(head: Head, bucket: str, source: Path) -> None:
    """Ctrl-C away from a terminal leaves the job alone and says how it can be followed and
    stopped."""
    small = to_path(_at("small", bucket))
    assert isinstance(small, RemotePath)
    publish(source, small)
    process, job = _prepare(head, _at("small", bucket), _at("again", bucket), "--folds", "2")
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == FAILED
    assert f"ray job logs --follow {job}" in told
    wait_for((to_path(_at("again", bucket)) / "manifest.json").is_file)


def _asked(head: Head, path: str) -> dict[str, Any]:
    """Return what a head's dashboard answers."""
    token = Path(head.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
    answer = httpx.get(
        f"{head.dashboard}{path}", headers={"Authorization": f"Bearer {token}"}, timeout=30
    )
    return dict(answer.raise_for_status().json())


def _job_status(head: Head, job: str) -> str:
    """Return what the head says of a job."""
    return str(_asked(head, f"/api/jobs/{job}")["status"])


@pytest.mark.parametrize(("answer", "told"), [("y", "is being stopped"), ("n", "continues")])
def test_ctrl_c_at_a_terminal_asks(
    answer: str, told: str, head: Head, bucket: str, dataset: str
) -> None:
    ours, theirs = pty.openpty()
    process, job = _prepare(
        head, _at("source", bucket), _at(f"asked_{answer}", bucket), stdin=theirs
    )
    process.send_signal(signal.SIGINT)
    os.write(ours, f"{answer}\n".encode())
    _, said = process.communicate(timeout=60)
    os.close(ours)
    os.close(theirs)
    assert "stop the job too? [y/N]" in said
    assert f"job {job} {told}" in said
    if answer == "y":
        wait_for(lambda: _job_status(head, job) == "STOPPED")
    else:
        assert _job_status(head, job) in ("PENDING", "RUNNING", "SUCCEEDED")
        _ray_job(head, "stop", "--no-wait", job)


def _status(url: str) -> int:
    """Return the status with which something answers, 0 where nothing does."""
    try:
        return httpx.get(url, timeout=10).status_code
    except httpx.TransportError:
        return 0


def _runs(head: Head, config: dict[str, Any]) -> bool:
    """Return whether this very config is deployed, with as many replicas of everything as it asks
    for at least."""
    app = _asked(head, "/api/serve/applications/")["applications"].get("melanoma", {})
    wanted = {
        each["name"]: int(each["autoscaling_config"]["min_replicas"])
        for each in config["applications"][0]["deployments"]
    }
    return (
        app.get("status") == "RUNNING"
        and app["deployed_app_config"]["args"] == config["applications"][0]["args"]
        and all(
            sum(replica["state"] == "RUNNING" for replica in app["deployments"][name]["replicas"])
            >= num
            for name, num in wanted.items()
        )
    )


NOT_THERE = """
import sys
from importlib.machinery import PathFinder

class WhatIsThere(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name in {modules} else super().find_spec(name, path, target)

sys.meta_path = [WhatIsThere if finder is PathFinder else finder for finder in sys.meta_path]
"""


@pytest.fixture(scope="module")
def as_in_the_image(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a Python that has no package, or part of one, that the serving image is
    without."""
    text = (manifests.K8S / "Dockerfile").read_text()
    listed = re.search(r"pip uninstall --yes (.*?)&&", text, re.DOTALL)
    assert listed is not None
    left_out = {name for name in listed[1].split() if name != "\\"}
    modules = {
        module
        for module, packages in importlib.metadata.packages_distributions().items()
        if left_out & {re.sub("[-_.]+", "-", name).lower() for name in packages}
    }
    removed = re.search(r"&& rm -r (.*?)&&", text, re.DOTALL)
    assert removed is not None
    parts = re.findall(r'"\$\{site:\?\}"/([\w/]+)', removed[1])
    modules |= {part.replace("/", ".") for part in parts}
    assert {"matplotlib", "sklearn", "joblib", "onnx", "ray.rllib"} <= modules
    assert not {"ray", "torch", "pandas", "pyarrow"} & modules
    folder = tmp_path_factory.mktemp("image")
    (folder / "sitecustomize.py").write_text(NOT_THERE.format(modules=sorted(modules)))
    return {"PYTHONPATH": str(folder)}


def test_a_package_that_the_image_lacks_is_missed(as_in_the_image: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import matplotlib"],
        env=os.environ | as_in_the_image, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "No module named 'matplotlib'" in done.stderr


@pytest.mark.parametrize(
    "overlay", ["cpu/serve", "serve-minimal", pytest.param("gpu/serve", marks=pytest.mark.drill)]
)
def test_the_service_of_the_manifests_answers(
    overlay: str,
    head: Head,
    trained_run: str,
    image: bytes,
    as_in_the_image: dict[str, str],
    tmp_path: Path,
) -> None:
    """The overlay's own Serve config, with this test's bundle, port and keys, sent by `serve
    deploy` as KubeRay would."""
    (service,) = manifests.of_kind(manifests.render(overlay), "RayService")
    config: dict[str, Any] = yaml.safe_load(service["spec"]["serveConfigV2"])
    bundle = trained_run.replace("?", "/bundle?")
    config["http_options"] |= {"host": "127.0.0.1", "port": head.serve_port}
    config["applications"][0]["args"] |= {
        "bundle": bundle,
        "manifest_sha256": sha256_of(to_path(bundle) / MANIFEST),
        "require_api_key": False,
        "allow_uncontracted": True,
    }
    config["applications"][0]["runtime_env"] = {"env_vars": as_in_the_image}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    subprocess.run(
        [BIN / "serve", "deploy", tmp_path / "config.yaml", "--address", head.dashboard],
        env=os.environ | head.environment, check=True, timeout=120,
    )  # fmt: skip
    url = f"http://127.0.0.1:{head.serve_port}"
    wait_for(lambda: _runs(head, config) and _status(f"{url}/readyz") == 200, seconds=180)
    for method in ("grad_cam", "guided_grad_cam"):
        answer = httpx.post(f"{url}/v1/predict?explain={method}", content=image, timeout=60).json()
        assert answer["decision"] in get_args(Decision)
        assert "contract_not_met" not in answer["warnings"]
        assert answer["explanation"]["method"] == method
    assert httpx.post(f"{url}/v1/report", content=image, timeout=60).content[:5] == b"%PDF-"
