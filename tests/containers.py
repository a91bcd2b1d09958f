"""Pods of the manifests as containers of this machine: their image with a read-only root, their
user, volumes, environment and memory; without a cluster."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests.machines import Machine
from tests.manifests import K8S

IMAGE_ROOT = "MELANOMA_IMAGE_ROOT"
"""Names the folder of the unpacked serving image."""
MOUNTS: tuple[dict[str, Any], ...] = (
    {"destination": "/proc", "type": "proc", "source": "proc"},
    {
        "destination": "/dev",
        "type": "tmpfs",
        "source": "tmpfs",
        "options": ["nosuid", "mode=755", "size=64k"],
    },
    {
        "destination": "/dev/pts",
        "type": "devpts",
        "source": "devpts",
        "options": ["newinstance", "ptmxmode=0666"],
    },
    {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]},
)

SHARED_MEMORY: dict[str, Any] = {
    "destination": "/dev/shm",
    "type": "tmpfs",
    "source": "tmpfs",
    "options": ["mode=1777", "size=1g"],
}


def missing_image() -> str:
    """Return why there can be no containers here, or nothing."""
    if shutil.which("runc") is None:
        return "containers need runc"
    if not Path(os.environ.get(IMAGE_ROOT, "/nowhere")).is_dir():
        return f"{IMAGE_ROOT} names no folder; docs/kubernetes/images.md says how to make it"
    return ""


def environment_of_image() -> list[str]:
    """Return what the serving image sets."""
    text = (K8S / "Dockerfile").read_text().replace("\\\n", " ")
    (told,) = re.findall(r"^ENV (.*PYTHONUNBUFFERED.*)$", text, re.MULTILINE)
    return [word.replace("$PATH", "/usr/local/bin:/usr/bin:/bin") for word in told.split()]


class Container:
    """The first container of a pod; state: whether it runs.

    Args:
        machine: where it has its network.
        folder: for its files, empty.
        spec: of the pod.
        environment: what config maps, secrets and the operator set.
        command: of the shell.
        read: folders that are mounted to be read, by their path inside.
    """

    def __init__(
        self,
        machine: Machine,
        folder: Path,
        spec: dict[str, Any],
        environment: dict[str, str],
        command: str,
        read: dict[str, Path],
    ) -> None:
        self._name, self._folder, self._state = machine.name, folder, folder / "state"
        (container,) = spec["containers"]
        user, memory = spec["securityContext"], container["resources"]["limits"]["memory"]
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n{machine.address} {machine.name}\n")
        mounts = [*MOUNTS, *self._volumes(spec, container)]
        for inside, outside in {**read, "/etc/hosts": folder / "hosts"}.items():
            mounts.append(_bind(outside, inside, "ro"))
        config = {
            "ociVersion": "1.0.2",
            "hostname": machine.name,
            "root": {
                "path": os.environ[IMAGE_ROOT],
                "readonly": container["securityContext"]["readOnlyRootFilesystem"],
            },
            "process": {
                "user": {"uid": user["runAsUser"], "gid": user["runAsGroup"]},
                "args": ["/bin/bash", "-c", "--", f"ulimit -n 65536; exec {command}"],
                "env": [
                    *environment_of_image(),
                    *(f"{name}={value}" for name, value in environment.items()),
                ],
                "cwd": "/tmp",
                "noNewPrivileges": not container["securityContext"]["allowPrivilegeEscalation"],
                "capabilities": {},
            },
            "mounts": mounts,
            "linux": {
                "cgroupsPath": f"/melanoma/{machine.name}",
                "resources": {"memory": {"limit": bytes_of(memory), "swap": bytes_of(memory)}},
                "namespaces": [
                    *({"type": kind} for kind in ("pid", "ipc", "uts", "mount")),
                    {"type": "network", "path": f"/run/netns/{machine.name}"},
                ],
            },
        }
        (folder / "config.json").write_text(json.dumps(config))
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                ["runc", "--root", self._state, "run", "--bundle", folder, self._name],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    def _volumes(self, spec: dict[str, Any], container: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the mounts of a pod's volumes, here all on disk, and that of /dev/shm, which
        KubeRay adds."""
        made = [SHARED_MEMORY]
        for mount in container["volumeMounts"]:
            path = self._folder / mount["name"]
            path.mkdir()
            os.chown(path, 0, spec["securityContext"]["fsGroup"])
            path.chmod(0o2777)
            made.append(_bind(path, mount["mountPath"], "rw"))
        return made

    def run(self, command: str) -> "subprocess.CompletedProcess[str]":
        """Run a command of the shell inside, as a probe does."""
        assert self._process.poll() is None, (self._folder / "log").read_text()[-2000:]
        return subprocess.run(
            ["runc", "--root", self._state, "exec", self._name, "bash", "-c", command],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    def memory(self) -> tuple[int, int]:
        """Return how many of its processes were killed because memory ran out, and the MiB that
        they hold now, without files."""
        for folder, kills, held in (
            (Path("/sys/fs/cgroup/memory/melanoma"), "memory.oom_control", "total_rss"),
            (Path("/sys/fs/cgroup/melanoma"), "memory.events", "anon"),
        ):
            if (path := folder / self._name).is_dir():
                return _told(path / kills)["oom_kill"], _told(path / "memory.stat")[held] // 2**20
        raise AssertionError("this computer counts no memory")

    def stop(self) -> None:
        """Kill all that runs there."""
        for words in (["kill", self._name, "KILL"], ["delete", "--force", self._name]):
            subprocess.run(
                ["runc", "--root", self._state, *words], capture_output=True, check=False
            )
        self._process.wait(60)


def bytes_of(text: str) -> int:
    """Return the bytes of a quantity such as 3Gi."""
    number, unit = re.fullmatch(r"(\d+)([MG]i)", text).groups()  # type: ignore[union-attr]
    return int(number) * 2 ** {"Mi": 20, "Gi": 30}[unit]


def _told(path: Path) -> dict[str, int]:
    return {name: int(value) for name, value in map(str.split, path.read_text().splitlines())}


def _bind(outside: Path, inside: str, mode: str) -> dict[str, Any]:
    return {
        "destination": inside,
        "type": "bind",
        "source": str(outside),
        "options": ["rbind", mode],
    }
