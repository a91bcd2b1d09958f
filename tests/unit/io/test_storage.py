"""Places in object storage, on fsspec's memory file system: what pathlib would say of files on a
disk is the oracle."""

import pickle
import uuid
from pathlib import Path

import pytest

from melanoma.data.prepare import _work_folder
from melanoma.errors import DataError, SettingError, UserError
from melanoma.io.files import (
    INCOMPLETE,
    claim_folder,
    new_folder,
    shared_folder,
    write_json,
    write_text,
)
from melanoma.io.storage import (
    AnyPath,
    RemotePath,
    SyncedFolder,
    as_file_system,
    files_below,
    is_plain_name,
    redacted,
    remove_folder,
    to_path,
)
from melanoma.places import REJECTED


@pytest.fixture(params=["disk", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> AnyPath:
    """An empty folder on a disk and one in object storage: all that is written for one must hold
    for the other."""
    return tmp_path / "folder" if request.param == "disk" else _remote()


def _remote() -> RemotePath:
    made = to_path(f"memory://bucket/{uuid.uuid4().hex}")
    assert isinstance(made, RemotePath)
    return made


def test_a_path_is_named_by_its_address() -> None:
    address = "s3://bucket/runs/one?endpoint_override=127.0.0.1:9000&scheme=http"
    found = to_path(address)
    assert isinstance(found, RemotePath)
    assert str(found) == address
    assert str(found / "bundle" / "manifest.json") == address.replace(
        "one?", "one/bundle/manifest.json?"
    )
    assert (found / "bundle").parent == found
    assert (found.name, (found / "a.csv").suffix, (found / "a.csv").stem) == ("one", ".csv", "a")
    assert isinstance(to_path("/data/one"), Path)


@pytest.mark.parametrize(
    "name", ["one", "one#2", "one #2.jpg", "what?.jpg", "100%25.jpg", "a?b=c.jpg"]
)
def test_a_name_may_hold_what_means_something_in_addresses(name: str, folder: AnyPath) -> None:
    """Images are named by others."""
    claim_folder(folder, {})
    path = folder / name
    write_text(path, "x")
    for there in (
        pickle.loads(pickle.dumps(path)),
        to_path(str(path)),
    ):  # the ways from process to process
        assert (there, there.name, there.read_text()) == (path, name, "x")
    assert [each.name for each in files_below(folder, {path.suffix})] == [name]


@pytest.mark.parametrize("end", ["one#2", "one#2?scheme=http", "one#2?scheme=http&region=x"])
def test_an_address_may_hold_a_hash_sign(end: str) -> None:
    found = to_path(f"s3://bucket/{end}")
    assert isinstance(found, RemotePath)
    assert (found.key, str(found)) == ("bucket/one#2", f"s3://bucket/{end}")


def test_settings_of_the_storage_are_kept_beside_a_question_mark_in_a_name() -> None:
    image = to_path("s3://bucket/source?scheme=http") / "what?.jpg"
    assert str(to_path(str(image)).parent) == "s3://bucket/source?scheme=http"


SECRETS = [
    "s3://AKIAKEY:SECRETWORD@bucket/runs",
    "s3://AKIAKEY:SECRET/WORD+SECRETWORD@bucket/runs?region=x",
    "s3://AKIAKEY:SECRETWORD",
    "gs://user:SECRETWORD@bucket/runs",
    "s3://bucket/runs?access_key=SECRETWORD&secret_key=SECRETWORD",
    "s3://bucket/runs?region=x&session_token=SECRETWORD",
    "s3://bucket/runs?endpoint_override=http://user:SECRETWORD@host:9000&scheme=http",
    "s3://bucket/runs?AWS_SECRET_ACCESS_KEY=SECRETWORD",
    "https://user:SECRETWORD@host/data",
    "https://host/data?X-Amz-Signature=SECRETWORD&X-Amz-Credential=SECRETWORD",
    "abfs://container@account/data?sig=SECRETWORD",
]


@pytest.mark.parametrize("address", SECRETS)
def test_an_address_with_a_secret_is_refused_without_repeating_it(address: str) -> None:
    with pytest.raises(
        SettingError, match="AWS_SECRET_ACCESS_KEY, or use the workload identity"
    ) as caught:
        to_path(address)
    assert "SECRETWORD" not in str(caught.value)


@pytest.mark.parametrize("address", SECRETS)
def test_a_secret_in_a_text_is_hidden_and_nothing_else(address: str) -> None:
    told = redacted(f"weights: ('{address}') at http://127.0.0.1:8265/ cost 3:4 @ noon, token of 3")
    assert "SECRETWORD" not in told
    assert told.endswith(") at http://127.0.0.1:8265/ cost 3:4 @ noon, token of 3")


@pytest.mark.parametrize(
    "address",
    [
        "gs://anonymous@bucket/runs",
        "abfs://container@account.dfs.core.windows.net/data",
        "s3://bucket/a:b@c.jpg?endpoint_override=127.0.0.1:9000&scheme=http",
        "memory://bucket/token=1/secret.jpg",
        "hdfs://host:8020/data",
    ],
)
def test_an_address_without_a_secret_is_taken_as_it_is(address: str) -> None:
    assert str(to_path(address)) == address


@pytest.mark.parametrize(
    "address", ["s3://bucket/../other/file", "memory://bucket/a/../../b", "s3://../bucket"]
)
def test_an_address_does_not_lead_out_of_its_folder(address: str) -> None:
    with pytest.raises(UserError, match=r"\.\."):
        to_path(address) / "file"


@pytest.mark.parametrize("name", ["", "/etc/passwd", "..", "a/../../b"])
def test_a_name_does_not_lead_out_of_its_folder(name: str) -> None:
    with pytest.raises(DataError):
        _remote() / name


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("train-00000.arrow", True),
        ("MODEL_CARD.md", True),
        ("", False),
        ("..", False),
        (".hidden", False),
        ("a/b", False),
        ("a\n", False),
        ("a\0", False),
        ("é", False),
        (3, False),
    ],
)
def test_a_plain_name_is_a_file_in_a_folder(name: object, plain: bool) -> None:
    assert is_plain_name(name) == plain


def test_what_is_no_storage_is_told() -> None:
    with pytest.raises(DataError, match="nowhere://"):
        to_path("nowhere://bucket/file").is_file()


@pytest.mark.parametrize(
    ("told", "error"),
    [
        ("AWS Error ACCESS_DENIED during HeadObject operation: No response body.", DataError),
        ("AWS Error UNKNOWN (HTTP status 400) during HeadObject operation", DataError),
        ("AWS Error UNKNOWN (HTTP status 503) during HeadObject operation", OSError),
        (
            (
                "AWS Error NETWORK_CONNECTION during HeadObject operation: curlCode: 7, Couldn't"
                " connect to server"
            ),
            OSError,
        ),
    ],
)
def test_a_wrong_address_is_told_from_storage_that_is_away(
    told: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Away:
        def get_file_info(self, _: str) -> None:
            raise OSError(told)

    monkeypatch.setattr(RemotePath, "file_system", Away())
    with pytest.raises(error, match=r"s3://bucket must .* it (is|does) not"):
        RemotePath("s3://bucket/runs").is_file()


def test_files_and_folders_are_there_once_written(folder: AnyPath) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    assert not (folder / "one.txt").is_file()
    write_text(folder / "one.txt", "first")
    write_text(folder / "one.txt", "second")
    assert (folder / "one.txt").read_text() == "second"
    assert folder.is_dir()
    assert not (folder / "one.txt").is_dir()
    (folder / "below").mkdir()
    write_text(folder / "below" / "two.CSV", "")
    assert [path.name for path in files_below(folder, {".csv", ".txt"})] == ["two.CSV", "one.txt"]
    assert [path.name for path in files_below(folder, {".csv"})] == ["two.CSV"]
    assert {path.name for path in folder.iterdir()} == {"one.txt", "below"}
    (folder / "one.txt").unlink(missing_ok=True)
    (folder / "one.txt").unlink(missing_ok=True)
    assert not (folder / "one.txt").exists()
    remove_folder(folder)
    remove_folder(folder)
    assert not folder.exists()


def test_a_run_keeps_its_folder(folder: AnyPath) -> None:
    assert not claim_folder(folder, {"seed": 1})
    assert claim_folder(folder, {"seed": 1})
    with pytest.raises(DataError, match="differs in seed"):
        claim_folder(folder, {"seed": 2})


def test_a_new_folder_is_there_whole_or_not_at_all(folder: AnyPath) -> None:
    def write(text: str) -> None:
        with new_folder(folder, replace_if="manifest.json") as work:
            write_text(work / "data", text)
            write_json(work / "manifest.json", {})
            if text == "broken":
                raise RuntimeError

    write("first")
    with pytest.raises(RuntimeError):
        write("broken")
    assert (folder / "data").read_text() == "first"
    write("second")
    assert (folder / "data").read_text() == "second"
    with pytest.raises(DataError, match="new or empty"), new_folder(folder):
        pass


def test_what_a_kill_left_in_object_storage_is_written_again() -> None:
    target = _remote()
    write_text(target / INCOMPLETE, "")
    write_text(target / "shards" / "half", "")
    with new_folder(target, replace_if="manifest.json") as work:
        write_json(work / "manifest.json", {})
    assert [path.name for path in target.iterdir() if path.is_file()] == ["manifest.json"]
    assert not (target / "shards" / "half").exists()


@pytest.mark.parametrize("replace_if", [None, "report.json"])
def test_what_is_another_s_in_object_storage_stays(replace_if: str | None) -> None:
    target = _remote()
    write_text(target / "runs" / "one", "a year's work")
    with pytest.raises(DataError, match="new or empty"), new_folder(target, replace_if=replace_if):
        pass
    with pytest.raises(DataError, match="new or empty"), shared_folder(target):
        pass
    bucket = to_path("memory://bucket")
    with pytest.raises(DataError, match="new or empty"), new_folder(bucket, replace_if=replace_if):
        pass
    assert (target / "runs" / "one").read_text() == "a year's work"


def test_why_a_source_was_refused_makes_room_for_the_next_try(folder: AnyPath) -> None:
    for _ in range(2):
        with _work_folder(folder) as work:
            write_text(work / REJECTED, "image_id,reason")
    with _work_folder(folder) as work:
        write_text(work / "manifest.json", "{}")
    assert [path.name for path in folder.iterdir()] == ["manifest.json"]
    with pytest.raises(DataError, match="new or empty"), _work_folder(folder):
        pass


def test_a_shared_folder_that_is_given_up_leaves_nothing() -> None:
    target = _remote()

    def give_up() -> None:
        with shared_folder(target) as work:
            write_text(work / "half", "")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        give_up()
    assert not (target / "half").exists()


def test_a_library_that_writes_plain_files_writes_there_too(folder: AnyPath) -> None:
    mirror = SyncedFolder(folder)
    mirror.folder.mkdir(parents=True, exist_ok=True)
    (mirror.folder / "events").write_text("1")
    mirror.push()
    assert (folder / "events").read_text() == "1"


def test_libraries_take_a_path_and_a_file_system(tmp_path: Path) -> None:
    remote = _remote()
    path, storage = as_file_system(remote)
    write_text(remote / "file", "x")
    assert storage is not None
    assert storage.open_input_stream(f"{path}/file").read() == b"x"
    assert as_file_system(tmp_path) == (str(tmp_path), None)


HIDDEN = [
    ".ipynb_checkpoints/a-checkpoint.csv",
    "__MACOSX/._a.csv",
    "._a.csv",
    ".DS_Store",
    "Thumbs.db",
    "images/.b.csv",
    "@eaDir/a.csv",
]


def test_what_other_programs_leave_is_passed_over(folder: AnyPath) -> None:
    for name in (*HIDDEN, "a.csv", "images/b.csv"):
        path = folder
        for part in name.split("/"):
            path = path / part
        if isinstance(path, Path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, "x")
    assert [path.name for path in files_below(folder)] == ["a.csv", "b.csv"]


def test_a_hidden_folder_that_is_named_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "a.csv").touch()
    assert len(files_below(tmp_path / ".cache")) == 1


def test_links_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    source, store = tmp_path / "source", tmp_path / "store"
    (store / "part").mkdir(parents=True)
    for path in (
        store / "a.jpg",
        store / "part" / "b.jpg",
        tmp_path / "table.csv",
        tmp_path / "other.jpg",
    ):
        path.touch()
    source.mkdir()
    (source / "own").mkdir()
    (source / "own" / "c.jpg").touch()
    (source / "images").symlink_to(store)
    (source / "again").symlink_to(source / "own")
    (source / "metadata.csv").symlink_to(tmp_path / "table.csv")
    (store / "part" / "round").symlink_to(store)
    (source / "own" / "up").symlink_to(source)
    (source / "own" / "out").symlink_to(tmp_path)
    (source / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "link").symlink_to(source)
    names = ["images/a.jpg", "images/part/b.jpg", "metadata.csv", "own/c.jpg"]
    assert [str(path.relative_to(source)) for path in files_below(source)] == names
    assert len(files_below(tmp_path / "link")) == 4
