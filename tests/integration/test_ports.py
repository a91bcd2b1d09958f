"""Ray listens on every address of the machine. Without the token nobody gets anything from its
ports."""

import os
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

from tests.serving import Service
from tests.strangers import call_as_a_stranger

pytestmark = pytest.mark.ray


def _listening() -> Iterator[tuple[str, int]]:
    """Give the command line and the port of every socket that this test's Ray listens on beyond
    loopback."""
    for process in psutil.Process(os.getpid()).children(recursive=True):
        for socket in process.net_connections("inet"):
            if socket.status == psutil.CONN_LISTEN and not socket.laddr.ip.startswith("127."):
                yield " ".join(process.cmdline()), socket.laddr.port


def test_a_replica_runs_nothing_for_a_stranger(service: Service, tmp_path: Path) -> None:
    mark = tmp_path / "run-by-a-stranger"
    ports = [port for title, port in _listening() if "ServeReplica" in title]
    assert len(ports) >= 3  # one replica of each deployment at least
    told = {call_as_a_stranger(port, mark) for port in ports}
    assert not mark.exists()
    # Each replica has a port of Serve's, which asks for the token, and one of Ray's core, which
    # does not know the call or asks too.
    assert grpc.StatusCode.UNAUTHENTICATED in told
    assert told <= {
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.UNAVAILABLE,
    }


def test_the_head_tells_a_stranger_nothing(service: Service) -> None:
    ports = [port for title, port in _listening() if "gcs_server" in title]
    assert ports
    told = set()
    for port in ports:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
            try:
                stub.GetAllNodeInfo(gcs_service_pb2.GetAllNodeInfoRequest(), timeout=20)
            except grpc.RpcError as error:
                told.add(error.code())
    assert told
    assert grpc.StatusCode.UNAUTHENTICATED in told
