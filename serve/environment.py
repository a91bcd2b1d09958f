"""Environment variables that set how Ray runs replicas and passes requests between them.

Ray reads them when it starts or is imported, so they must be set before that. Together they make
the graph about twice as fast: without them a small request spends most of its time in hops between
the threads and event loops of each replica. On your own cluster, set them in the environment in
which Ray is started (a shell or a pod):

    eval "$(python -m serve.environment)" && ray start --head
"""

import os
import shlex

ENVIRONMENT = {
    # All slow code of this project already runs in threads. A second event loop in each replica
    # only adds two hops to each call.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    # Calls between replicas bypass Ray's tasks and object store. This is faster, and no image can
    # be spilled to a disk.
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    # Large enough that a body over 20 MiB gets this service's own error and not gRPC's.
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(64 * 2**20),
    # Ray gives its workers a low priority (niceness 15), so that on a machine which does anything
    # else every request would wait. It applies to all workers of a cluster, also to trainings.
    "RAY_worker_niceness": "0",
    # The log file is enough.
    "RAY_SERVE_LOG_TO_STDERR": "0",
    # Replicas call each other at this machine's addresses. A proxy from the environment would
    # receive those calls and answer none of them.
    "grpc_proxy": "",
    # No telemetry: these libraries report their use and keep a user id on disk.
    "ORT_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


def set_environment() -> None:
    """Set the variables that are not set yet, and always clear the gRPC proxy.

    Call it before anything imports ray.serve.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ.update(grpc_proxy="")


if __name__ == "__main__":
    for name, value in ENVIRONMENT.items():
        print(f"export {name}={shlex.quote(value)}")
