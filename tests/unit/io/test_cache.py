"""What a node keeps of object storage: only what was named with its hash, and only as it was
promised."""

import hashlib
import os
import shutil
import urllib.request
import uuid
from pathlib import Path

import pytest

from melanoma.bundle.bundle import load_bundle
from melanoma.bundle.manifest import MANIFEST, WEIGHTS
from melanoma.data.dataset import ImageDataset, PreparedData, open_prepared
from melanoma.errors import BundleError, DataError
from melanoma.io import cache, files
from melanoma.io.cache import CACHE, cache_folder, local_file, local_folder
from melanoma.io.files import read_json, sha256_of, write_json, write_text
from melanoma.io.storage import RemotePath, publish, to_path
from tests.bundles import sign
from tests.clusters import CREDENTIALS
from tests.unreliable import unreliable_storage

PIXELS = hashlib.sha256(b"pixels").hexdigest()


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of this test."""
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def _remote() -> RemotePath:
    made = to_path(f"memory://bucket/{uuid.uuid4().hex}")
    assert isinstance(made, RemotePath)
    return made


def _written(folder: Path) -> list[str]:
    """Return the names of the files in the cache, without its locks."""
    return sorted(
        path.name
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith(".lock")
    )


@pytest.fixture
def shard() -> RemotePath:
    """A file in object storage."""
    path = _remote() / "shard"
    write_text(path, "pixels")
    return path


def test_a_file_is_fetched_once_and_only_as_it_was_promised(
    shard: RemotePath, tmp_path: Path
) -> None:
    kept = local_file(shard, PIXELS, max_bytes=6)
    assert kept.read_bytes() == b"pixels"
    shard.unlink()
    assert local_file(shard, PIXELS, max_bytes=6) == kept
    write_text(shard, "others")
    with pytest.raises(DataError, match="checksum"):
        local_file(shard, hashlib.sha256(b"more").hexdigest(), max_bytes=6)
    assert local_file(tmp_path, PIXELS, max_bytes=6) == tmp_path


@pytest.mark.parametrize("content", [b"", b"pix", b"pixelt"], ids=["empty", "cut", "altered"])
def test_a_copy_that_is_not_whole_is_fetched_again(content: bytes, shard: RemotePath) -> None:
    """A crash leaves the first two, a bad disk or another's hand the third, also while a process
    runs."""
    path = local_file(shard, PIXELS, max_bytes=6)
    path.write_bytes(content)
    assert local_file(shard, PIXELS, max_bytes=6).read_bytes() == b"pixels"


def test_a_kept_copy_is_hashed_once_in_a_process(
    shard: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []
    monkeypatch.setattr(cache, "sha256_of", lambda path: hashed.append(path) or sha256_of(path))
    for _ in range(3):
        local_file(shard, PIXELS, max_bytes=6)
    assert len(hashed) == 1


@pytest.mark.parametrize(
    "digest", ["/etc/passwd", "../x", "", PIXELS.upper(), PIXELS + "\n", PIXELS[1:], None]
)
def test_what_is_no_hash_is_no_path(digest: str, shard: RemotePath, kept: Path) -> None:
    with pytest.raises(DataError, match="64 hex digits"):
        local_file(shard, digest, max_bytes=6)
    assert not kept.exists()


def test_no_more_is_fetched_than_there_should_be(shard: RemotePath, kept: Path) -> None:
    with pytest.raises(DataError, match="at most 5 bytes"):
        local_file(shard, PIXELS, max_bytes=5)
    assert _written(kept) == []


def test_a_fetch_that_fails_half_way_leaves_nothing(
    shard: RemotePath, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        local_file(shard, PIXELS, max_bytes=6)
    assert _written(kept) == []


def test_what_a_killed_fetch_left_is_removed(shard: RemotePath, kept: Path) -> None:
    kept.mkdir(mode=0o700)
    (kept / f".{PIXELS}.0123456789abcdef").write_bytes(b"pix")
    local_file(shard, PIXELS, max_bytes=6)
    assert _written(kept) == [PIXELS]


def test_a_folder_is_kept_for_each_content_of_its_first_file() -> None:
    remote = _remote()
    for version in ("1", "2"):
        write_text(remote / "weights", version)
        files = {"weights": (hashlib.sha256(version.encode()).hexdigest(), 10)}
        found = local_folder(remote, ("manifest.json", version.encode()), files)
        assert {path.name: path.read_text() for path in found.glob("[!.]*")} == {
            "weights": version,
            "manifest.json": version,
        }


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/b", "..", ""])
def test_a_folder_holds_plain_names_only(name: str) -> None:
    with pytest.raises(DataError, match="plain name"):
        local_folder(_remote(), ("manifest.json", b"{}"), {name: (PIXELS, 10)})


def test_the_cache_is_a_folder_of_one_s_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(CACHE)
    monkeypatch.setattr(cache.tempfile, "gettempdir", lambda: str(tmp_path))
    (tmp_path / "mine").mkdir()
    (tmp_path / f"melanoma-cache-{os.getuid()}").symlink_to("mine")
    with pytest.raises(DataError, match="folder of your own"):
        cache_folder()


def test_of_a_bundle_the_pin_is_compared_before_anything_is_fetched(
    bundle_dir: Path, kept: Path
) -> None:
    remote = _remote()
    publish(bundle_dir, remote, last=MANIFEST)
    with pytest.raises(BundleError, match="pinned manifest_sha256"):
        load_bundle(remote, manifest_sha256="0" * 64)
    assert _written(kept) == []


def test_of_a_bundle_only_its_own_files_are_fetched(bundle_dir: Path, kept: Path) -> None:
    remote = _remote()
    publish(bundle_dir, remote, last=MANIFEST)
    write_text(remote / "core.dump", "x" * 10_000)
    write_text(remote / "below" / "more.bin", "x" * 10_000)
    pin = sha256_of(bundle_dir / MANIFEST)
    assert load_bundle(remote, manifest_sha256=pin).manifest == load_bundle(bundle_dir).manifest
    assert _written(kept) == sorted(path.name for path in bundle_dir.iterdir())


@pytest.mark.parametrize(
    "files",
    [
        {"../x": PIXELS},
        {"/etc/x": PIXELS},
        {"extra.bin": PIXELS},
        {WEIGHTS: "/etc/x"},
        {WEIGHTS: "../x"},
        {WEIGHTS: None},
        [WEIGHTS],
    ],
    ids=str,
)
def test_a_bundle_that_lists_anything_else_is_refused(
    files: object, bundle_dir: Path, tmp_path: Path, kept: Path
) -> None:
    copied, remote = Path(shutil.copytree(bundle_dir, tmp_path / "copied")), _remote()
    manifest = read_json(copied / MANIFEST)
    manifest["files"] = manifest["files"] | files if isinstance(files, dict) else files
    write_json(copied / MANIFEST, sign(manifest))
    publish(copied, remote)
    for there in (copied, remote):
        with pytest.raises(BundleError, match=r"nothing else|damaged at files"):
            load_bundle(there)
    assert _written(kept) == []


def test_a_cut_copy_of_a_bundle_is_fetched_again(bundle_dir: Path, kept: Path) -> None:
    remote = _remote()
    publish(bundle_dir, remote, last=MANIFEST)
    load_bundle(remote)
    for path in kept.rglob("[!.]*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:100])
    load_bundle(remote)


def test_a_key_that_leads_out_of_its_folder_writes_nothing(
    bundle_dir: Path, tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an S3 server takes it; three levels up it stays inside the bucket, and would leave the
    cache."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with unreliable_storage("melanoma") as (query, _, _):
        remote = to_path(f"s3://melanoma/runs/cpu/bundle?{query}")
        assert isinstance(remote, RemotePath)
        publish(bundle_dir, remote, last=MANIFEST)
        address = query.partition("=")[2].partition("&")[0]
        for key in ("runs/cpu/bundle/..%2F..%2F..%2Fslip_written", "slip_written"):
            request = urllib.request.Request(
                f"http://{address}/melanoma/{key}", method="PUT", data=b"out"
            )
            urllib.request.urlopen(request, timeout=10).close()
        with pytest.raises(BundleError, match="pinned manifest_sha256"):
            load_bundle(remote, manifest_sha256="0" * 64)
        load_bundle(remote)
    assert not list(tmp_path.rglob("slip_written*"))
    assert _written(kept) == sorted(path.name for path in bundle_dir.iterdir())


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/b", "..", ""])
def test_a_data_set_names_its_shards_plainly(
    name: str, prepared: PreparedData, tmp_path: Path
) -> None:
    _is_refused(prepared, tmp_path, lambda shards: {**shards, name: PIXELS}, "plain file names")


@pytest.mark.parametrize("digest", ["/etc/x", "../x", "", 3])
def test_a_data_set_names_hashes_of_its_shards(
    digest: object, prepared: PreparedData, tmp_path: Path
) -> None:
    _is_refused(
        prepared,
        tmp_path,
        lambda shards: dict.fromkeys(shards, digest),
        r"with their sha256|damaged at shards",
    )


def test_a_data_set_lists_all_its_shards(prepared: PreparedData, tmp_path: Path) -> None:
    _is_refused(
        prepared,
        tmp_path,
        lambda shards: dict(list(shards.items())[1:]),
        "Every shard in records.parquet",
    )


def _is_refused(prepared: PreparedData, tmp_path: Path, change: object, told: str) -> None:
    copied, remote = Path(shutil.copytree(prepared.folder, tmp_path / "data")), _remote()
    manifest = read_json(copied / "manifest.json")
    write_json(copied / "manifest.json", manifest | {"shards": change(manifest["shards"])})  # type: ignore[operator]
    publish(copied, remote)
    for there in (copied, remote):
        with pytest.raises(DataError, match=told):
            open_prepared(there)


def test_a_data_set_in_object_storage_is_read_through_the_cache(
    prepared: PreparedData, kept: Path
) -> None:
    remote = _remote()
    assert isinstance(prepared.folder, Path)
    publish(prepared.folder, remote)
    data = open_prepared(remote)
    images = ImageDataset(data, data.rows("calibration"))
    assert (
        images.images([0]) == ImageDataset(prepared, prepared.rows("calibration")).images([0])
    ).all()
    assert _written(kept) == [data.manifest.shards["calibration-00000.arrow"]]
