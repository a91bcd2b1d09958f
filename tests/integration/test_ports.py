"""Ray listens on every address of the machine; whoever reaches one of its ports without the token gets nothing."""

import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc
from ray.serve.generated import serve_pb2, serve_pb2_grpc

from tests.serving import Service

pytestmark = pytest.mark.ray


class _Touch:
    """Pickled, it makes a file where it is unpickled: what an attacker would do is anything."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self._path,)


def _listening() -> Iterator[tuple[str, int]]:
    """Give the command line and the port of every socket that this test's Ray listens on beyond loopback."""
    for process in psutil.Process(os.getpid()).children(recursive=True):
        for socket in process.net_connections("inet"):
            if socket.status == psutil.CONN_LISTEN and not socket.laddr.ip.startswith("127."):
                yield " ".join(process.cmdline()), socket.laddr.port


def test_a_replica_runs_nothing_for_a_stranger(service: Service, tmp_path: Path) -> None:
    mark = tmp_path / "run-by-a-stranger"
    request = serve_pb2.ASGIRequest(pickled_request_metadata=pickle.dumps(_Touch(mark)), request_args=b"")
    told = set()
    ports = [port for title, port in _listening() if "ServeReplica" in title]
    assert len(ports) >= 3  # one replica of each deployment at least
    for port in ports:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            try:
                serve_pb2_grpc.ASGIServiceStub(channel).HandleRequest(request, timeout=20)
            except grpc.RpcError as error:
                told.add(error.code())
    assert not mark.exists()
    # Each replica has a port of Serve's, which asks for the token, and one of Ray's core, which does not know the call or asks too.
    assert grpc.StatusCode.UNAUTHENTICATED in told
    assert told <= {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAVAILABLE}


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
