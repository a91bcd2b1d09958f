"""The public Python API: every name has an example, and every example is run."""

import doctest
import inspect
from pathlib import Path
from typing import Any

import pytest

import melanoma
from melanoma.data.dataset import PreparedData


def _examples(name: str) -> list[doctest.DocTest]:
    found = getattr(melanoma, name)
    parser, documented = doctest.DocTestParser(), [found]
    if inspect.isclass(found):
        documented += [
            method
            for key, method in vars(found).items()
            if inspect.isfunction(method) and key[0] != "_"
        ]
    texts = [(item, inspect.getdoc(item) or "") for item in documented]
    tests = [parser.get_doctest(text, {}, f"{name}:{item}", None, 0) for item, text in texts]
    return [test for test in tests if test.examples]


@pytest.mark.parametrize("name", melanoma.__all__)
def test_every_example_holds(
    name: str, phantom_source: Path, prepared: PreparedData, bundle_dir: Path, tmp_path: Path
) -> None:
    examples = _examples(name)
    assert examples, f"{name} has no example"
    there: dict[str, Any] = {public: getattr(melanoma, public) for public in melanoma.__all__}
    there |= {
        "phantom": phantom_source,
        "dataset": prepared.folder,
        "bundle_dir": bundle_dir,
        "tmp_path": tmp_path,
    }
    there |= {"image_path": min((phantom_source / "images").iterdir())}
    runner = doctest.DocTestRunner()
    told: list[str] = []
    for example in examples:
        example.globs = dict(there)
        runner.run(example, out=told.append)
    assert runner.failures == 0, "".join(told)


def test_nothing_else_is_public() -> None:
    with pytest.raises(AttributeError, match="no attribute 'torch'"):
        melanoma.torch  # noqa: B018
    assert sorted(melanoma._HOMES) == sorted(melanoma.__all__) == melanoma.__all__
