"""The network behind plain FastAPI: one image per request, and one request at a time."""

import threading
from typing import Any

from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool

from benchmarks.peers import Peer

app = FastAPI()
peer = Peer()
lock = threading.Lock()


def _answer(data: bytes) -> dict[str, Any]:
    image, stored = peer.decode(data)
    with lock:
        (prediction,) = peer.predict([stored])
    return peer.encode(image, prediction)


@app.post("/predict")
async def predict(request: Request) -> dict[str, Any]:
    return await run_in_threadpool(_answer, await request.body())
