import base64
import dataclasses
import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from melanoma.bundle.deciding import Prediction
from melanoma.errors import InvalidImageError
from melanoma.evidence.several_images import MAX_IMAGES
from serve.open_inference import (
    HEADER_LENGTH,
    InferenceRequestError,
    Predicted,
    metadata,
    read_request,
    write_response,
)
from tests.bundles import described, several_images

DESCRIBED, SEVERAL = described("v"), several_images()
FOR_LESIONS = described("v", several_images=SEVERAL)
IMAGE = b"\xff\xd8\xffimage"
REFERRED = Prediction(np.zeros(2), np.array([0.25, 0.75]), "refer", (), 0.0)


def _alone(*predictions: Prediction) -> Predicted:
    return Predicted(DESCRIBED, DESCRIBED.manifest.operating_point, predictions)


def _json(**changes: Any) -> dict[str, Any]:
    asked = {
        "name": "image",
        "datatype": "BYTES",
        "shape": [1],
        "data": [base64.b64encode(IMAGE).decode()],
    }
    return {"id": "7", "inputs": [asked | changes]}


def _read(header: Any, tail: bytes = b"") -> Any:
    body = json.dumps(header).encode()
    return read_request(body + tail, str(len(body)) if tail else None)


def _binary(*images: bytes) -> tuple[dict[str, Any], bytes]:
    tail = b"".join(struct.pack("<I", len(image)) + image for image in images)
    header = _json(shape=[len(images)], parameters={"binary_data_size": len(tail)})
    del header["inputs"][0]["data"]
    return header, tail


def test_json_and_binary_give_the_same_images() -> None:
    assert _read(_json()).images == [IMAGE]
    assert _read(*_binary(IMAGE, b"")).images == [IMAGE, b""]


def test_pixels_come_as_numbers_or_as_bytes() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 50, 3), dtype=np.uint8)
    head = {"name": "pixels", "datatype": "UINT8", "shape": [2, 40, 50, 3]}
    as_numbers = _read({"inputs": [head | {"data": pixels.ravel().tolist()}]})
    as_bytes = _read(
        {"inputs": [head | {"parameters": {"binary_data_size": pixels.nbytes}}]}, pixels.tobytes()
    )
    for asked in (as_numbers, as_bytes):
        assert all(isinstance(image, Image.Image) for image in asked.images)
        assert np.array_equal(np.stack([np.asarray(image) for image in asked.images]), pixels)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda h: h.pop("inputs"), "one input"),
        (lambda h: h.update(inputs=[h["inputs"][0]] * 2), "one input"),
        (lambda h: h["inputs"][0].update(name=["image"]), "name"),
        (lambda h: h["inputs"][0].update(datatype="FP32"), "datatype"),
        (lambda h: h["inputs"][0].update(shape=[True]), "whole numbers"),
        (lambda h: h["inputs"][0].update(shape=[0]), r"\[N\]"),
        (lambda h: h["inputs"][0].update(shape=[33]), r"\[N\]"),
        (lambda h: h["inputs"][0].update(shape=[2]), "as many images"),
        (lambda h: h["inputs"][0].update(data="abc"), "base64"),
        (lambda h: h["inputs"][0].update(data=["%%%"]), "base64"),
        (lambda h: h["inputs"][0].update(data=[{"a": [1]}]), "base64"),
        (lambda h: h.update(outputs=[{"name": {}}]), "outputs"),
        (lambda h: h.update(id=7), "id"),
        (lambda h: h["inputs"][0].update(parameters={"binary_data_size": 99}), "binary_data_size"),
    ],
)
def test_what_does_not_follow_the_protocol_is_refused(
    change: Callable[[dict[str, Any]], object], rule: str
) -> None:
    header = _json()
    change(header)
    with pytest.raises(InferenceRequestError, match=rule):
        _read(header)


@pytest.mark.parametrize("body", [b"", b"[]", b"\xff\xd8", b"[" * 100_000, b'{"inputs": NaN'])
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(InferenceRequestError):
        read_request(body, None)


@pytest.mark.parametrize("length", ["-1", "x", "9" * 30, "100000", "\u0661"])
def test_a_length_outside_the_body_is_refused(length: str) -> None:
    with pytest.raises(InferenceRequestError):
        read_request(json.dumps(_json()).encode(), length)


def test_elements_must_have_their_lengths() -> None:
    header, tail = _binary(IMAGE)
    for cut in (tail[:2], tail[:-1], tail + b"\1"):
        header["inputs"][0]["parameters"]["binary_data_size"] = len(cut)
        with pytest.raises(InferenceRequestError, match="length"):
            _read(header, cut)


def test_pixels_are_limited_like_images() -> None:
    head = {"name": "pixels", "datatype": "UINT8", "data": [0]}
    with pytest.raises(InvalidImageError) as caught:
        _read({"inputs": [head | {"shape": [1, 9999, 9999, 3]}]})
    assert caught.value.status == 413
    with pytest.raises(InferenceRequestError, match="together"):
        _read({"inputs": [head | {"shape": [30, 4000, 4000, 3]}]})
    for data in ([0.5] * 4800, [256] * 4800, [-1] * 4800, ["a"] * 4800, [[1], [2, 3]], [2**70]):
        with pytest.raises(InferenceRequestError, match="0 to 255"):
            _read({"inputs": [head | {"shape": [1, 40, 40, 3], "data": data}]})


def test_an_answer_gives_what_was_asked_in_the_form_asked() -> None:
    header = _json()
    body, headers = write_response(_read(header), _alone(REFERRED))
    answer = json.loads(body)
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("7", "melanoma", "v")
    assert [output["data"] for output in answer["outputs"]] == [[0.25, 0.75], ["refer"]]
    assert headers == {"Content-Type": "application/json"}
    header["outputs"] = [{"name": "decision", "parameters": {"binary_data": True}}]
    body, headers = write_response(_read(header), _alone(REFERRED))
    length = int(headers[HEADER_LENGTH.title()])
    (output,) = json.loads(body[:length])["outputs"]
    assert output["parameters"]["binary_data_size"] == len(body) - length
    assert body[length:] == struct.pack("<I", 5) + b"refer"


def test_an_answer_says_what_it_rests_on() -> None:
    """As /v1 does: a decision without a promise must not look like one with it."""
    warned = dataclasses.replace(REFERRED, warnings=("uncontracted",))
    body, _ = write_response(_read(_json()), _alone(warned, warned))
    told = json.loads(body)["parameters"]
    assert told["contract_status"] == metadata(DESCRIBED)["parameters"]["contract_status"] == "met"
    assert told["contract"] == DESCRIBED.contract_sentence
    assert told["threshold"] == DESCRIBED.manifest.operating_point.threshold
    assert (told["classes"], told["targets"]) == ("akiec, bcc, bkl, df, mel, nv, vasc", "mel")
    assert told["warnings"] == "uncontracted"
    assert all(
        isinstance(value, str | int | float) for value in told.values()
    )  # as the protocol has parameters


@pytest.mark.parametrize(
    "change",
    [
        {"parameters": {"explain": "grad_cam"}},
        {"outputs": [{"name": "probabilities", "parameters": {"classification": 3}}]},
    ],
)
def test_what_is_asked_and_not_offered_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InferenceRequestError, match=r"explanations|Classification"):
        _read(_json() | change)


def test_long_strings_among_pixels_cost_nothing() -> None:
    """As an array of fixed width these two megabytes would be twenty gigabytes."""
    data = ["a" * 10_000] + [""] * 500_000
    asked = {
        "inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [1, 400, 417, 3], "data": data}]
    }
    with pytest.raises(InferenceRequestError, match="whole numbers from 0 to 255"):
        read_request(json.dumps(asked).encode(), None)


def test_a_flood_of_empty_elements_is_cut_off() -> None:
    asked = {
        "name": "image",
        "datatype": "BYTES",
        "shape": [1],
        "parameters": {"binary_data_size": 4_000_000},
    }
    header = json.dumps({"inputs": [asked]}).encode()
    with pytest.raises(InferenceRequestError, match="at most 32 elements"):
        read_request(header + bytes(4_000_000), str(len(header)))


def _of_lesion(num: int, asked: Any = True) -> dict[str, Any]:
    header = _json(shape=[num], data=[base64.b64encode(IMAGE).decode()] * num)
    return header | {"parameters": {"one_lesion": asked}}


def test_a_request_may_say_that_its_images_show_one_lesion() -> None:
    assert not _read(_json()).one_lesion
    assert not _read(_of_lesion(7, asked=False)).one_lesion
    for num in (1, MAX_IMAGES):
        asked = _read(_of_lesion(num))
        assert asked.one_lesion
        assert len(asked.images) == num
    pixels = {"name": "pixels", "datatype": "UINT8", "shape": [2, 40, 40, 3], "data": [0] * 9600}
    assert _read({"inputs": [pixels], "parameters": {"one_lesion": True}}).one_lesion


@pytest.mark.parametrize("asked", ["true", 1, None, [True], {}])
def test_what_is_neither_true_nor_false_is_refused(asked: Any) -> None:
    with pytest.raises(InferenceRequestError, match="one_lesion must be true or false"):
        _read(_of_lesion(2, asked=asked))


def test_a_lesion_has_at_most_six_images() -> None:
    with pytest.raises(InferenceRequestError, match="N must be from 1 to 6"):
        _read(_of_lesion(MAX_IMAGES + 1))


def test_a_lesion_is_answered_with_the_contract_that_decided() -> None:
    predicted = Predicted(FOR_LESIONS, SEVERAL, [REFERRED])
    answer = json.loads(write_response(_read(_of_lesion(3)), predicted)[0])
    assert [output["shape"] for output in answer["outputs"]] == [[1, 2], [1]]
    told = answer["parameters"]
    assert told["threshold"] == SEVERAL.threshold != DESCRIBED.manifest.operating_point.threshold
    assert told["contract"] == FOR_LESIONS.several_images_sentence
    assert "several images of one lesion" in told["contract"]


def test_metadata_name_the_contract_for_lesions_if_there_is_one() -> None:
    told = metadata(FOR_LESIONS)["parameters"]
    assert told["one_lesion_threshold"] == SEVERAL.threshold
    assert told["one_lesion_contract_status"] == "met"
    assert told["one_lesion_contract"] == FOR_LESIONS.several_images_sentence
    assert all(isinstance(value, str | int | float) for value in told.values())
    assert not [name for name in metadata(DESCRIBED)["parameters"] if "one_lesion" in name]
