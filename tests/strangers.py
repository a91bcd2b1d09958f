"""What somebody without Ray's token would send to its ports."""

import pickle
from pathlib import Path

import grpc
from ray.serve.generated import serve_pb2, serve_pb2_grpc


class _Touch:
    """Pickled, it makes a file where it is unpickled: what an attacker would do is anything."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self._path,)


def call_as_a_stranger(port: int, mark: Path) -> grpc.StatusCode:
    """Send a pickle that leaves a mark to a port of this machine, as Serve's proxies send requests;
    return what is answered."""
    request = serve_pb2.ASGIRequest(
        pickled_request_metadata=pickle.dumps(_Touch(mark)), request_args=b""
    )
    with grpc.insecure_channel(
        f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]
    ) as channel:
        try:
            serve_pb2_grpc.ASGIServiceStub(channel).HandleRequest(request, timeout=20)
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
    return grpc.StatusCode.OK
