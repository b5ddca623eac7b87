"""Places, the mirror of a run's folder and fetched data, on file:// (tests/jobs/test_storage_s3.py: on a real S3 server)."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.data.manifest import Manifest, SplitEntry, read_manifest, write_manifest
from pipeline.data.shards import write_shard
from pipeline.files import file_hash
from pipeline.storage.cache import fetch, store_shards
from pipeline.storage.mirror import Mirror, pull, read_index
from pipeline.storage.places import Absent, Place, StorageError, is_url
from pipeline.training.checkpoint import load_latest, save_checkpoint

ROOT = Path(__file__).parents[2]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(f"file://{tmp_path}/store")


def make_run(folder: Path, steps: tuple[int, ...]) -> None:
    for step in steps:
        save_checkpoint(folder / "beam" / "checkpoints", step, {"w": torch.full((7, 5), float(step))}, {"x": step}, 2)
    (folder / "beam" / "metrics.jsonl").write_text("".join(json.dumps({"step": s}) + "\n" for s in steps))
    (folder / "stages").mkdir(exist_ok=True)
    (folder / "stages" / "beam.json").write_text(json.dumps({"steps": steps}))
    (folder / ".lock").touch()
    (folder / "ray").mkdir(exist_ok=True)
    (folder / "ray" / "own").write_text("not ours")


def content(folder: Path) -> dict[str, str]:
    """Name -> sha256 of every file that belongs to the run."""
    return {
        path.relative_to(folder).as_posix(): file_hash(path)
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".") and "ray" not in path.relative_to(folder).parts
    }


def make_shards(folder: Path, seed: int) -> Manifest:
    folder.mkdir(parents=True, exist_ok=True)
    rows = np.random.default_rng(seed).integers(0, 255, (300, 2, 2, 3), dtype=np.uint8)
    shards = tuple(write_shard(folder / f"train-{i:05d}.tar", rows[i * 100 : i * 100 + 100]) for i in range(3))
    manifest = Manifest("pixels", "synthetic-faces", "0" * 64, {}, (2, 2, 3), {"train": SplitEntry(300, shards)})
    write_manifest(folder, manifest)
    return manifest


# --- places -----------------------------------------------------------------------------------------------------------


def test_an_object_comes_back_and_is_listed(place: Place, tmp_path: Path) -> None:
    place.write("a/b c.bin", b"x" * 1013)
    assert [(item.name, item.bytes) for item in place.items()] == [("a/b c.bin", 1013)]
    sha256 = place.get("a/b c.bin", tmp_path / "got" / "b")
    assert (tmp_path / "got" / "b").read_bytes() == b"x" * 1013
    assert sha256 == hashlib.sha256(b"x" * 1013).hexdigest()
    place.delete("a/b c.bin")
    place.delete("a/b c.bin")
    assert place.items() == []
    with pytest.raises(Absent, match="there is nothing of that name"):
        place.read("a/b c.bin")


def test_what_is_not_what_it_has_to_be_is_not_kept(place: Place, tmp_path: Path) -> None:
    place.write("a", b"one")
    with pytest.raises(StorageError, match="is damaged"):
        place.get("a", tmp_path / "a", hashlib.sha256(b"two").hexdigest(), 3)
    assert list(tmp_path.glob("*a*")) == []


def test_a_fetch_goes_on_with_what_a_killed_one_left(place: Place, tmp_path: Path) -> None:
    whole = os.urandom(10_007)
    place.write("a", whole)
    (tmp_path / ".a.part").write_bytes(whole[:4001])
    told: list[int] = []
    place.get("a", tmp_path / "a", size=10_007, tell=told.append, resume=True)
    assert (tmp_path / "a").read_bytes() == whole
    assert told == [4001, 6006]


def test_a_part_of_an_earlier_object_is_not_gone_on_with(place: Place, tmp_path: Path) -> None:
    place.write("a", b"new" * 1000)
    (tmp_path / ".a.part").write_bytes(b"old" * 400)
    assert place.get("a", tmp_path / "a", size=3000) == hashlib.sha256(b"new" * 1000).hexdigest()
    assert (tmp_path / "a").read_bytes() == b"new" * 1000


@pytest.mark.parametrize("url", ["http://host/x", "s3:///x", "s3://key:secret@bucket/x", "s3://bucket/x?region=a", "x"])
def test_a_url_of_another_kind_is_refused_without_its_secrets(url: str) -> None:
    with pytest.raises(StorageError) as raised:
        Place(url)
    assert "secret" not in str(raised.value) and "\n" not in str(raised.value)


def test_urls_and_paths_are_told_apart() -> None:
    assert [is_url(text) for text in ("s3://a/b", "gs://a", "/a/b", "a:b", "s3:/a", None)] == [True, True] + [False] * 4


# --- the mirror -------------------------------------------------------------------------------------------------------


def test_a_run_comes_back_with_the_same_bytes(place: Place, tmp_path: Path) -> None:
    make_run(tmp_path / "run", (100, 200, 300))
    Mirror(tmp_path / "run", place).send()
    assert pull(place, tmp_path / "other").damaged == ()
    assert content(tmp_path / "other") == content(tmp_path / "run") != {}
    assert not (tmp_path / "other" / "ray").exists()
    assert not any(item.name.rsplit("/", 1)[-1].startswith(".") for item in place.items())


def test_what_a_run_drops_is_dropped_at_the_place(place: Place, tmp_path: Path) -> None:
    make_run(tmp_path / "run", (100, 200))
    mirror = Mirror(tmp_path / "run", place)
    mirror.send()
    make_run(tmp_path / "run", (300,))
    mirror.send()
    index = read_index(place)
    assert index is not None
    assert sorted({name.split("/")[2] for name in index if "step_" in name}) == ["step_00000200", "step_00000300"]
    assert {item.name for item in place.items()} == {"index.json"} | {e.object(n) for n, e in index.items()}


def test_nothing_is_sent_twice_even_by_another_process(place: Place, tmp_path: Path) -> None:
    make_run(tmp_path / "run", (100,))
    Mirror(tmp_path / "run", place).send()
    before = {item.name: item.modified_ns for item in place.items()}
    Mirror(tmp_path / "run", place).send()
    after = {item.name: item.modified_ns for item in place.items()}
    assert before.keys() == after.keys()
    assert all(before[name] == after[name] for name in before if name != "index.json")


@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_and_sent_again(
    place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    make_run(tmp_path / "run", (100, 200))
    Mirror(tmp_path / "run", place).send()
    index = read_index(place)
    assert index is not None
    name = "beam/checkpoints/step_00000200/state.safetensors"
    file = tmp_path / "store" / index[name].object(name)
    whole = file.read_bytes()
    if damage == "delete":
        file.unlink()
    else:
        file.write_bytes(whole[:-1] + (bytes([whole[-1] ^ 1]) if damage == "flip" else b""))
    pulled = pull(place, tmp_path / "other")
    found = load_latest(tmp_path / "other" / "beam" / "checkpoints")
    assert found is not None and found.step == 100
    assert "going back to the checkpoint before it" in caplog.text
    make_run(tmp_path / "other", (200,))  # the resumed run comes to the same bits
    Mirror(tmp_path / "other", place, pulled.damaged).send()
    assert file.read_bytes() == whole


def test_a_run_that_went_on_elsewhere_is_taken_with_its_metrics(place: Place, tmp_path: Path) -> None:
    make_run(tmp_path / "run", (100,))
    make_run(tmp_path / "elsewhere", (100, 200))
    Mirror(tmp_path / "elsewhere", place).send()
    pull(place, tmp_path / "run")
    assert content(tmp_path / "run")["beam/metrics.jsonl"] == content(tmp_path / "elsewhere")["beam/metrics.jsonl"]
    found = load_latest(tmp_path / "run" / "beam" / "checkpoints")
    assert found is not None and found.step == 200


def test_a_run_that_is_ahead_of_the_place_stays_as_it_is(place: Place, tmp_path: Path) -> None:
    make_run(tmp_path / "run", (100,))
    Mirror(tmp_path / "run", place).send()
    make_run(tmp_path / "run", (200,))
    before = content(tmp_path / "run")
    pull(place, tmp_path / "run")
    assert content(tmp_path / "run") == before


def test_a_damaged_or_hostile_index_is_refused(place: Place, tmp_path: Path) -> None:
    make_run(tmp_path / "run", (100,))
    Mirror(tmp_path / "run", place).send()
    text = place.read("index.json")
    for bad in (text[:-9], text.replace(b"metrics", b"METRICS"), b"[]", b"\xff", b'{"version": 1, "files": {}}'):
        place.write("index.json", bad)
        with pytest.raises(StorageError, match=r"index\.json is damaged"):
            pull(place, tmp_path / "other")
    from pipeline.files import canonical_hash

    for name in ("../x", "/x", "a/../../x"):
        values = {"version": 1, "files": {name: [1, "0" * 64]}}
        place.write("index.json", json.dumps({**values, "hash": canonical_hash(values)}).encode())
        with pytest.raises(StorageError, match="points out of the folder"):
            pull(place, tmp_path / "other")
    assert not (tmp_path / "other").exists()


KILLED_UPLOAD = """
import sys
from pathlib import Path
from pipeline.storage.mirror import Mirror
from pipeline.storage.places import Place
mirror = Mirror(Path(sys.argv[1]), Place(sys.argv[2]))
store = mirror._store
def slowly(name):
    entry = store(name)
    print(name, flush=True)
    return entry
mirror._store = slowly
mirror.send()
"""


@pytest.mark.parametrize("after", [1, 2, 3, 5])
def test_killed_amid_an_upload_the_place_holds_the_state_before(place: Place, tmp_path: Path, after: int) -> None:
    run = tmp_path / "run"
    make_run(run, (100,))
    Mirror(run, place).send()
    before = content(run)
    make_run(run, (200, 300))
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED_UPLOAD, str(run), place.url],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    for _ in range(after):
        assert process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    pull(place, tmp_path / "other")
    # the pass may have come to its end before the signal did
    assert content(tmp_path / "other") in (before, content(run))
    Mirror(run, place).send()
    pull(place, tmp_path / "third")
    assert content(tmp_path / "third") == content(run)


def test_a_place_that_refuses_does_not_reach_the_run_and_is_caught_up_with(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_run(tmp_path / "run", (100,))
    (tmp_path / "store").write_text("a file, where a folder has to be")
    mirror = Mirror(tmp_path / "run", Place(f"file://{tmp_path}/store"), every=0.05).start()
    end = time.monotonic() + 30
    while "the run goes on" not in caplog.text and time.monotonic() < end:
        time.sleep(0.02)
    assert caplog.text.count("the run goes on") == 1
    (tmp_path / "store").unlink()
    assert mirror.finish(seconds=30)
    assert "answers again" in caplog.text
    pull(Place(f"file://{tmp_path}/store"), tmp_path / "other")
    assert content(tmp_path / "other") == content(tmp_path / "run")


def test_a_place_that_refuses_to_the_end_is_named_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_run(tmp_path / "run", (100,))
    (tmp_path / "store").write_text("a file, where a folder has to be")
    mirror = Mirror(tmp_path / "run", Place(f"file://{tmp_path}/store"), every=0.05).start()
    assert not mirror.finish(seconds=0.5)
    assert "the same command sends it" in caplog.messages[-1] and "\n" not in caplog.messages[-1]


# --- data -------------------------------------------------------------------------------------------------------------


def test_shards_are_stored_and_fetched_once(place: Place, tmp_path: Path) -> None:
    manifest = make_shards(tmp_path / "shards", 1)
    assert store_shards(tmp_path / "shards", place.url) > 0
    assert store_shards(tmp_path / "shards", place.url) == 0
    folder = fetch(place.url, tmp_path / "cache")
    assert read_manifest(folder).hash == manifest.hash
    assert content(folder) == content(tmp_path / "shards")
    times = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tar")}
    assert fetch(place.url, tmp_path / "cache") == folder
    assert times == {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tar")}


def test_other_shards_of_the_same_names_and_sizes_replace_the_first_here_and_there(
    place: Place, tmp_path: Path
) -> None:
    for seed in (1, 2):
        make_shards(tmp_path / f"shards-{seed}", seed)
        store_shards(tmp_path / f"shards-{seed}", place.url)
        code = "import sys; from pathlib import Path; from pipeline.storage.cache import fetch; "
        code += "fetch(sys.argv[1], Path(sys.argv[2]))"
        command = [sys.executable, "-c", code, place.url, str(tmp_path / "cache")]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        (folder,) = (tmp_path / "cache" / "fetched").iterdir()
        assert content(folder) == content(tmp_path / f"shards-{seed}")


def test_one_process_fetches_what_changed_since_it_fetched_and_goes_on_holding_it(place: Place, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for seed in (1, 2):
        make_shards(tmp_path / f"shards-{seed}", seed)
        store_shards(tmp_path / f"shards-{seed}", place.url)
        folder = fetch(place.url, cache)
        assert content(folder) == content(tmp_path / f"shards-{seed}")
    code = "import fcntl, sys; fcntl.flock(open(sys.argv[1], 'ab'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    held = subprocess.run([sys.executable, "-c", code, str(folder / ".in-use")], capture_output=True, text=True)
    assert "BlockingIOError" in held.stderr, "another process may not make room of it"
    shutil.rmtree(cache)
    assert content(fetch(place.url, cache)) == content(tmp_path / "shards-2")


def test_what_another_process_reads_is_not_replaced(place: Place, tmp_path: Path) -> None:
    make_shards(tmp_path / "shards-1", 1)
    store_shards(tmp_path / "shards-1", place.url)
    folder = fetch(place.url, tmp_path / "cache")
    code = "import fcntl, sys; f = open(sys.argv[1], 'ab'); fcntl.flock(f, fcntl.LOCK_SH); print(flush=True); sys.stdin.read()"
    reader = subprocess.Popen(
        [sys.executable, "-c", code, str(folder / ".in-use")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert reader.stdout is not None and reader.stdout.readline()
    assert fetch(place.url, tmp_path / "cache") == folder
    make_shards(tmp_path / "shards-2", 2)
    store_shards(tmp_path / "shards-2", place.url)
    with pytest.raises(StorageError, match="another process reads that: wait for its end"):
        fetch(place.url, tmp_path / "cache")
    assert content(folder) == content(tmp_path / "shards-1")
    reader.communicate()
    assert content(fetch(place.url, tmp_path / "cache")) == content(tmp_path / "shards-2")


def test_half_an_upload_is_no_data_set_and_is_gone_on_with(place: Place, tmp_path: Path) -> None:
    make_shards(tmp_path / "shards", 1)
    os.rename(tmp_path / "shards" / "train-00002.tar", tmp_path / "kept")
    with pytest.raises(FileNotFoundError):
        store_shards(tmp_path / "shards", place.url)
    with pytest.raises(StorageError, match="half an upload"):
        fetch(place.url, tmp_path / "cache")
    os.rename(tmp_path / "kept", tmp_path / "shards" / "train-00002.tar")
    size = (tmp_path / "shards" / "train-00002.tar").stat().st_size
    assert store_shards(tmp_path / "shards", place.url) == size
    assert content(fetch(place.url, tmp_path / "cache")) == content(tmp_path / "shards")


def test_a_damaged_shard_is_not_fetched(place: Place, tmp_path: Path) -> None:
    make_shards(tmp_path / "shards", 1)
    store_shards(tmp_path / "shards", place.url)
    file = tmp_path / "store" / "train-00001.tar"
    data = bytearray(file.read_bytes())
    data[1000] ^= 1
    file.write_bytes(data)
    with pytest.raises(StorageError, match=r"train-00001.tar is damaged"):
        fetch(place.url, tmp_path / "cache")
    assert (
        not list((tmp_path / "cache").rglob("train-00001.tar")) + list((tmp_path / "cache").rglob("manifest.json"))[1:]
    )


def test_files_are_compared_with_sha256sums(place: Place, tmp_path: Path) -> None:
    place.write("faces/1.jpg", b"one")
    place.write("SHA256SUMS", f"{hashlib.sha256(b'one').hexdigest()}  ./faces/1.jpg\n".encode())
    folder = fetch(place.url, tmp_path / "cache")
    assert (folder / "faces" / "1.jpg").read_bytes() == b"one"
    place.write("faces/1.jpg", b"two")
    with pytest.raises(StorageError, match=r"faces/1.jpg is damaged"):
        fetch(place.url, tmp_path / "cache-2")


def test_nothing_at_a_url_says_so(place: Place, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="there is nothing at"):
        fetch(place.url, tmp_path / "cache")


def test_the_cache_of_fetched_data_is_bounded_and_keeps_what_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEAM_FETCHED_GB", "0.00025")
    code = "import sys, pathlib, pipeline.storage.cache as c; c.fetch(sys.argv[1], pathlib.Path(sys.argv[2]))"
    cache = tmp_path / "cache"

    def elsewhere(name: str) -> None:
        command = [sys.executable, "-c", code, f"file://{tmp_path}/{name}", str(cache)]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})

    for name in ("a", "b", "c"):
        Place(f"file://{tmp_path}/{name}").write(name, name.encode() * 100_000)
    elsewhere("a")
    elsewhere("b")
    elsewhere("c")
    kept = {path.name for path in (cache / "fetched").rglob("*") if path.is_file() and not path.name.startswith(".")}
    assert kept == {"b", "c"}
    fetch(f"file://{tmp_path}/b", cache)  # in use by this process, and older than c
    os.utime(next((cache / "fetched").rglob("b")).parent / ".in-use", (1, 1))
    elsewhere("a")
    kept = {path.name for path in (cache / "fetched").rglob("*") if path.is_file() and not path.name.startswith(".")}
    assert kept == {"a", "b"}
    Place(f"file://{tmp_path}/large").write("d", bytes(300_000))
    with pytest.raises(StorageError, match="BEAM_FETCHED_GB allows"):
        fetch(f"file://{tmp_path}/large", cache)
