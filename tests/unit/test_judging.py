"""What evaluation and scoring share."""

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from melanoma.bundle.bundle import load_bundle
from melanoma.bundle.predictor import Predictor
from melanoma.imaging.decode import decode_image
from melanoma.judging import BATCHES_AT_ONCE, in_threads, judge, judge_batches, read_stored


@pytest.mark.parametrize("num_threads", [1, 3])
def test_threads_keep_the_order_and_pass_errors_on(num_threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        assert in_threads(lambda n: n * n, range(100)) == [n * n for n in range(100)]
        assert in_threads(str, []) == []
        with pytest.raises(ZeroDivisionError):
            in_threads(lambda n: 1 // n, [1, 0, 2])
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def predictor(bundle_dir: Path) -> Predictor:
    return Predictor(load_bundle(bundle_dir))


@pytest.fixture(scope="module")
def paths(phantom_source: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    bad = tmp_path_factory.mktemp("bad") / "bad.jpg"
    bad.write_bytes(b"no image")
    found = [str(path) for path in sorted((phantom_source / "images").iterdir())[:45]]
    return [*found[:20], str(bad), *found[20:]]


@pytest.mark.parametrize("size", [1, 3, 16, 46])
def test_batches_side_by_side_give_the_rows_of_batches_in_turn(
    size: int, predictor: Predictor, paths: list[str]
) -> None:
    """Bit for bit, also where several threads share a matrix product."""
    assert predictor.has_own_threads

    def read(path: str) -> np.ndarray | tuple[str, str]:
        return read_stored(path, predictor.bundle)

    batches = [paths[start : start + size] for start in range(0, len(paths), size)]
    before = torch.get_num_threads()
    found = judge_batches(predictor, batches, read)
    assert torch.get_num_threads() == before
    expected = [row for batch in batches for row in judge(predictor, [read(p) for p in batch])]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(list(ours.values()), list(theirs.values()))
    assert [row["reason"] for row in found].index("image_unreadable") == 20


def test_without_a_network_of_its_own_threads_one_batch_is_computed_at_a_time(
    bundle_dir: Path, paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Predictor(dataclasses.replace(load_bundle(bundle_dir), features_onnx=None))
    assert not plain.has_own_threads
    inside, see = threading.Semaphore(1), plain.see

    def alone(stored: list[np.ndarray]) -> object:
        assert inside.acquire(blocking=False)
        try:
            return see(stored)
        finally:
            inside.release()

    monkeypatch.setattr(plain, "see", alone)
    rows = judge_batches(
        plain, [paths[:4], paths[4:8], paths[8:12]], lambda path: read_stored(path, plain.bundle)
    )
    assert len(rows) == 12


def test_few_batches_are_kept_in_memory(predictor: Predictor, paths: list[str]) -> None:
    image, asked = read_stored(paths[0], predictor.bundle), list[int]()
    decided = list[int]()

    def batches() -> Iterator[list[int]]:
        for number in range(12):
            asked.append(number)
            assert len(asked) - len(decided) <= BATCHES_AT_ONCE + 1
            yield [number]

    class Counting(Predictor):
        def decide(self, seen):  # type: ignore[no-untyped-def]
            decided.append(len(decided))
            return super().decide(seen)

    assert len(judge_batches(Counting(predictor.bundle), batches(), lambda _: image)) == 12


def test_an_error_of_reading_ends_the_batches(predictor: Predictor) -> None:
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError):
        judge_batches(predictor, [[1], [0], [2]], lambda n: ("blank", str(1 // n)))
    assert torch.get_num_threads() == before


def test_the_network_s_input_is_that_of_the_one_preprocessing(
    predictor: Predictor, paths: list[str]
) -> None:
    """In parts that fit a core's cache, and in the order in memory that the network takes."""
    stored = np.stack(
        [
            predictor.bundle.preprocess.stored(decode_image(Path(path).read_bytes()))
            for path in paths[:19]
        ]
    )
    inputs = predictor.inputs(stored)
    assert inputs.is_contiguous()
    assert torch.equal(inputs, predictor.bundle.preprocess(torch.from_numpy(stored)))
