import hashlib
import os
from pathlib import Path

import pytest

from melanoma.errors import SettingError
from serve.api_keys import VARIABLE, ApiKeys, key_of, keys_from_environment


def _line(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def test_a_key_of_the_file_is_allowed_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# clinic A\n{_line('one')} ward 3\n\n{_line('two')}\n")
    keys = ApiKeys(path)
    assert keys.allow("one")
    assert keys.allow("two")
    assert not keys.allow("")
    assert not keys.allow("three")
    assert not keys.allow(_line("one"))


def test_a_changed_file_is_taken_up_and_a_broken_one_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.api_keys.logger.propagate", True)
    path = tmp_path / "keys"
    path.write_text(_line("one"))
    keys = ApiKeys(path)

    def change(text: str, seconds: int) -> None:
        path.write_text(text)
        os.utime(path, (seconds, seconds))

    change(_line("two"), 1_000)
    assert keys.allow("two")
    assert not keys.allow("one")
    change("two", 2_000)
    assert keys.allow("two")
    assert not keys.allow("one")
    assert "stay as they were" in caplog.text


@pytest.mark.parametrize(("text", "rule"), [("secret", "line 1"), ("# none", "at least one key")])
def test_a_file_that_holds_no_hashes_is_refused_without_repeating_it(tmp_path: Path, text: str, rule: str) -> None:
    (tmp_path / "keys").write_text(text)
    with pytest.raises(SettingError, match=rule) as caught:
        ApiKeys(tmp_path / "keys")
    assert "secret" not in str(caught.value)


def test_the_environment_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert keys_from_environment() is None
    monkeypatch.setenv(VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(SettingError, match="readable"):
        keys_from_environment()


def test_a_key_stands_in_a_header() -> None:
    assert key_of({"authorization": "Bearer abc"}) == "abc"
    assert key_of({"x-api-key": "abc"}) == "abc"
    assert key_of({"authorization": "Basic abc"}) is None
    assert key_of({}) is None
