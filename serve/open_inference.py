"""Reads and writes the Open Inference Protocol v2, with JSON and binary data.

Source: https://github.com/kserve/open-inference-protocol (REST), and Triton's binary tensor data
extension. Encoded images have the datatype BYTES. JSON has no bytes, so there each image is a
base64 string. The protocol has no explanations; /v1/predict gives them. The request parameter
`one_lesion` is an extension: all images of the request show one lesion and get one decision. This
module knows nothing of deployments.
"""

import base64
import binascii
import dataclasses
import itertools
import json
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from melanoma.arrays import Uint8Array
from melanoma.bundle.deciding import Prediction
from melanoma.config import DISCLAIMER
from melanoma.errors import UserError
from melanoma.evidence.operating_point import OperatingPoint
from melanoma.evidence.several_images import MAX_IMAGES as MAX_LESION_IMAGES
from melanoma.imaging.decode import MAX_PIXELS, check_size
from serve.described import Described

MODEL = "melanoma"
HEADER_LENGTH = "inference-header-content-length"
MAX_IMAGES = 32
PROBABILITIES, DECISION = "probabilities", "decision"
ONE_LESION = "one_lesion"
_DATATYPES = {"image": "BYTES", "pixels": "UINT8"}
_OUTPUTS = {PROBABILITIES: "FP32", DECISION: "BYTES"}
_NO_OBJECT = "The body must begin with one JSON object. See /openapi.json."
_ELEMENT = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string"},
        "datatype": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "parameters": {"type": "object"},
        "data": {"type": "array", "items": {}},
    },
}
BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["inputs"],
                    "properties": {
                        "id": {"type": "string", "maxLength": 256},
                        "inputs": {
                            "type": "array",
                            "minItems": 1,
                            "maxItems": 1,
                            "items": _ELEMENT,
                        },
                        "outputs": {"type": "array", "items": _ELEMENT},
                        "parameters": {
                            "type": "object",
                            "properties": {
                                ONE_LESION: {
                                    "type": "boolean",
                                    "description": "whether all images, at most"
                                    f" {MAX_LESION_IMAGES}, show one lesion; the outputs then have"
                                    " the shapes [1, C] and [1]",
                                }
                            },
                        },
                    },
                }
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


class InferenceRequestError(UserError):
    """A request does not follow the protocol. The message never repeats the client's input."""


@dataclasses.dataclass(frozen=True)
class InferenceRequest:
    """A parsed inference request.

    Attributes:
        id: the client's id, returned in the answer; None if the client sent none.
        images: encoded images, or images made from ``(H, W, 3)`` uint8 pixels.
        outputs: the wanted outputs: name -> whether as binary data.
        one_lesion: whether all images show one lesion.
    """

    id: str | None
    images: Sequence[bytes | Image.Image]
    outputs: dict[str, bool]
    one_lesion: bool = False


@dataclasses.dataclass(frozen=True)
class Predicted:
    """What is answered to a request.

    Attributes:
        described: description of the bundle that answered.
        operating_point: the threshold and the contract that decided.
        predictions: one for each image, or one for the lesion.
    """

    described: Described
    operating_point: OperatingPoint
    predictions: Sequence[Prediction]


def metadata(described: Described) -> dict[str, Any]:
    """Return the answer of /v2/models/melanoma for a bundle."""
    return {
        "name": MODEL,
        "versions": [described.manifest.version],
        "platform": "pytorch",
        "inputs": [
            {"name": "image", "datatype": "BYTES", "shape": [-1]},
            {"name": "pixels", "datatype": "UINT8", "shape": [-1, -1, -1, 3]},
        ],
        "outputs": [
            {
                "name": PROBABILITIES,
                "datatype": "FP32",
                "shape": [-1, described.manifest.task.num_classes],
            },
            {"name": DECISION, "datatype": "BYTES", "shape": [-1]},
        ],
        "parameters": {
            **_contract_parameters(described, described.manifest.operating_point),
            **_lesion_parameters(described),
        },
    }


def _lesion_parameters(described: Described) -> dict[str, Any]:
    """Return the contract for requests with `one_lesion`; nothing if they are refused."""
    point, sentence = described.manifest.several_images, described.several_images_sentence
    if point is None:
        return {}
    return {
        f"{ONE_LESION}_contract_status": point.contract.status,
        f"{ONE_LESION}_contract": sentence,
        f"{ONE_LESION}_threshold": point.threshold,
    }


def _contract_parameters(described: Described, point: OperatingPoint) -> dict[str, Any]:
    """Return contract, threshold and classes as strings and numbers, as `parameters` needs them."""
    manifest = described.manifest
    return {
        "contract_status": point.contract.status,
        "contract": point.contract.sentence(manifest.task),
        "threshold": point.threshold,
        "classes": ", ".join(manifest.task.classes),
        "targets": ", ".join(manifest.task.targets),
        "disclaimer": DISCLAIMER,
    }


def read_request(body: bytes, header_length: str | None) -> InferenceRequest:
    """Read an inference request.

    Args:
        body: the JSON object, followed by the binary data of its inputs.
        header_length: the header Inference-Header-Content-Length: the length of the JSON object in
            bytes; None if there is no binary data.

    Raises:
        InferenceRequestError: if the request does not follow the protocol.
        InvalidImageError: if the size of the pixels is not allowed.
    """
    length = _header_length(header_length, len(body))
    try:
        header = json.loads(body[:length])
    except (ValueError, RecursionError):
        raise InferenceRequestError(_NO_OBJECT) from None
    _require(isinstance(header, dict), _NO_OBJECT)
    inputs = header.get("inputs")
    _require(
        isinstance(inputs, list) and len(inputs) == 1 and isinstance(inputs[0], dict),
        "inputs must hold one input, either image or pixels.",
    )
    (asked,) = inputs
    name = asked.get("name")
    if not isinstance(name, str) or name not in _DATATYPES:
        raise InferenceRequestError("inputs[0].name must be image or pixels.")
    _require(
        asked.get("datatype") == _DATATYPES[name],
        f"inputs[0].datatype of {name} must be {_DATATYPES[name]}.",
    )
    shape = asked.get("shape")
    _require(
        isinstance(shape, list)
        and all(isinstance(side, int) and not isinstance(side, bool) for side in shape),
        "inputs[0].shape must be a list of whole numbers.",
    )
    images = (_images if name == "image" else _pixels)(asked, shape, body[length:])
    identity = header.get("id")
    _require(
        identity is None or (isinstance(identity, str) and len(identity) <= 256),
        "id must be a string of at most 256 characters.",
    )
    return InferenceRequest(
        identity, images, _wanted(header), _is_one_lesion(header, num=len(images))
    )


def write_response(request: InferenceRequest, predicted: Predicted) -> tuple[bytes, dict[str, str]]:
    """Return the body and the headers of the answer to a request."""
    found = predicted.predictions
    probabilities = np.stack([each.probabilities for each in found])
    decisions = [each.decision for each in found]
    warnings = [code for each in found for code in each.warnings]
    values: dict[str, Any] = {PROBABILITIES: probabilities.astype("<f4"), DECISION: decisions}
    outputs, tail = [], b""
    for name, binary in request.outputs.items():
        shape = list(probabilities.shape) if name == PROBABILITIES else [len(decisions)]
        output: dict[str, Any] = {"name": name, "datatype": _OUTPUTS[name], "shape": shape}
        if binary:
            data = values[name].tobytes() if name == PROBABILITIES else _with_lengths(values[name])
            output["parameters"] = {"binary_data_size": len(data)}
            tail += data
        else:
            output["data"] = (
                values[name].ravel().tolist() if name == PROBABILITIES else values[name]
            )
        outputs.append(output)
    version = predicted.described.manifest.version
    answer: dict[str, Any] = {"model_name": MODEL, "model_version": version, "outputs": outputs}
    answer["parameters"] = {
        **_contract_parameters(predicted.described, predicted.operating_point),
        "warnings": ", ".join(dict.fromkeys(warnings)),
    }
    if request.id is not None:
        answer["id"] = request.id
    header = json.dumps(answer).encode()
    if not tail:
        return header, {"Content-Type": "application/json"}
    return header + tail, {
        "Content-Type": "application/octet-stream",
        HEADER_LENGTH.title(): str(len(header)),
    }


def _require(is_met: bool, rule: str) -> None:
    if not is_met:
        raise InferenceRequestError(rule)


def _header_length(text: str | None, most: int) -> int:
    if text is None:
        return most
    _require(
        text.isdecimal() and len(text) < 12 and int(text) <= most,
        f"{HEADER_LENGTH.title()} must be a whole number of at most the body's length.",
    )
    return int(text)


def _images(asked: dict[str, Any], shape: list[int], tail: bytes) -> list[bytes]:
    _require(
        len(shape) == 1 and 1 <= shape[0] <= MAX_IMAGES,
        f"The shape of image must be [N] with N from 1 to {MAX_IMAGES}.",
    )
    images = (
        _from_lengths(_binary(asked, tail))
        if _is_binary(asked)
        else _from_base64(asked.get("data"))
    )
    _require(
        len(images) == shape[0], "The data of image must hold as many images as its shape says."
    )
    return images


def _pixels(asked: dict[str, Any], shape: list[int], tail: bytes) -> list[Image.Image]:
    _require(
        len(shape) == 4 and 1 <= shape[0] <= MAX_IMAGES and shape[3] == 3 and min(shape) > 0,
        f"The shape of pixels must be [N, H, W, 3] with N from 1 to {MAX_IMAGES}.",
    )
    num, height, width, _ = shape
    check_size(width, height)
    _require(
        num * height * width <= MAX_PIXELS,
        f"All images together must have at most {MAX_PIXELS // 10**6} million pixels. Send fewer"
        " images.",
    )
    values: Uint8Array
    if _is_binary(asked):
        data = _binary(asked, tail)
        _require(len(data) == num * height * width * 3, "The data of pixels must fill its shape.")
        values = np.frombuffer(data, dtype=np.uint8)
    else:
        values = _from_numbers(asked.get("data"), num * height * width * 3)
    return [Image.fromarray(image) for image in values.reshape(num, height, width, 3)]


def _from_numbers(data: Any, size: int) -> Uint8Array:
    rule = "The data of pixels must fill its shape with whole numbers from 0 to 255."
    # Checked element by element before numpy sees it: numpy would store every element at the width
    # of the longest string, which a client could use to fill the memory.
    values = list(_flat(data, size + 1))
    _require(
        len(values) == size and all(type(value) is int and 0 <= value <= 255 for value in values),
        rule,
    )
    return np.array(values, dtype=np.uint8)


def _flat(data: Any, most: int) -> Iterator[Any]:
    """Return an iterator over the elements of nested lists.

    Args:
        data: lists, nested at most four deep as pixels are. A deeper list counts as an element.
        most: the largest number of elements.
    """
    level = [data]
    for _ in range(4):
        level = list(
            itertools.islice(
                (item for part in level for item in (part if isinstance(part, list) else [part])),
                most,
            )
        )
    return iter(level)


def _is_binary(asked: dict[str, Any]) -> bool:
    parameters = asked.get("parameters")
    return isinstance(parameters, dict) and "binary_data_size" in parameters


def _binary(asked: dict[str, Any], tail: bytes) -> bytes:
    size = asked["parameters"]["binary_data_size"]
    _require(
        isinstance(size, int) and size == len(tail),
        "binary_data_size must be the number of bytes after the JSON object.",
    )
    return tail


def _from_lengths(data: bytes) -> list[bytes]:
    """Split the elements of BYTES; before each is its length (4 bytes, little-endian)."""
    parts: list[bytes] = []
    place = 0
    while place < len(data):
        _require(len(parts) < MAX_IMAGES, f"BYTES must have at most {MAX_IMAGES} elements.")
        _require(place + 4 <= len(data), "Each element of BYTES must be preceded by its length.")
        (length,) = struct.unpack_from("<I", data, place)
        _require(
            place + 4 + length <= len(data), "Each element of BYTES must be preceded by its length."
        )
        parts.append(data[place + 4 : place + 4 + length])
        place += 4 + length
    return parts


def _with_lengths(words: Sequence[str]) -> bytes:
    return b"".join(struct.pack("<I", len(word.encode())) + word.encode() for word in words)


def _from_base64(data: Any) -> list[bytes]:
    _require(
        isinstance(data, list) and all(isinstance(item, str) for item in data),
        "The data of image must be base64 strings.",
    )
    try:
        return [base64.b64decode(item, validate=True) for item in data]
    except (binascii.Error, ValueError):
        raise InferenceRequestError("The data of image must be base64 strings.") from None


def _parameters(header: dict[str, Any]) -> dict[str, Any]:
    asked = header.get("parameters")
    return asked if isinstance(asked, dict) else {}


def _is_one_lesion(header: dict[str, Any], *, num: int) -> bool:
    """Return whether all images of a request show one lesion.

    Args:
        header: the JSON object of the request.
        num: number of images.
    """
    asked = _parameters(header).get(ONE_LESION, False)
    _require(isinstance(asked, bool), f"The parameter {ONE_LESION} must be true or false.")
    _require(
        not asked or num <= MAX_LESION_IMAGES,
        f"With the parameter {ONE_LESION}, N must be from 1 to {MAX_LESION_IMAGES}.",
    )
    return bool(asked)


def _wanted(header: dict[str, Any]) -> dict[str, bool]:
    """Return the wanted outputs: name -> whether as binary data."""
    parameters = _parameters(header)
    _require(
        "explain" not in parameters,
        "The protocol has no explanations. Use /v1/predict?explain=grad_cam.",
    )
    binary = bool(parameters.get("binary_data_output"))
    outputs = header.get("outputs")
    if not outputs:
        return dict.fromkeys(_OUTPUTS, binary)
    _require(
        isinstance(outputs, list)
        and all(
            isinstance(output, dict) and output.get("name") in list(_OUTPUTS) for output in outputs
        ),
        f"outputs must be chosen from {', '.join(_OUTPUTS)}.",
    )
    wanted = {}
    for output in outputs:
        parameters = _parameters(output)
        _require(
            "classification" not in parameters,
            "Classification is not supported. Read the output probabilities.",
        )
        wanted[output["name"]] = bool(parameters.get("binary_data", binary))
    return wanted
