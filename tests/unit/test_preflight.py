"""Each check of the preflight over facts: what is right passes, what is wrong is named with what to do."""

import dataclasses
from pathlib import Path

import pytest

from data_prep.synthetic_faces import draw_dataset
from jobs.node_facts import NodeFacts, Wanted, clean, collect, unseen_files, versions
from jobs.preflight import (
    GIB,
    Finding,
    RayNode,
    as_table,
    check_answer,
    check_clock,
    check_data,
    check_disk,
    check_gpus,
    check_mlflow,
    check_storage,
    check_versions,
    check_workers,
)

GOOD = NodeFacts(
    node="a",
    versions={"python": "3.12.1", "torch": "2.13.0", "code": "c0ffee"},
    gpus=4,
    gpu_name="H100",
    nccl=True,
    written={"runs": "", "cache": ""},
    free={"runs": 50 * GIB, "cache": 50 * GIB, "ray": 50 * GIB},
    total={"runs": 100 * GIB, "cache": 100 * GIB, "ray": 100 * GIB},
    images=202_599,
    data_hash="d",
)


def changed(**fields: object) -> NodeFacts:
    return dataclasses.replace(GOOD, **fields)  # type: ignore[arg-type]


def test_a_good_node_passes_all() -> None:
    findings = [
        check_versions(GOOD.versions, GOOD),
        check_gpus(RayNode("a", 16, 4), GOOD),
        check_workers([RayNode("a", 16, 4), RayNode("b", 16, 4)], 8),
        check_storage("runs", "/shared/runs", GOOD),
        *check_data("/shared/celeba", [GOOD, changed(node="b")]),
        *check_disk(GOOD, GOOD.images),
        check_clock("a", [(10.0, 10.3, 10.2)]),
        check_mlflow("http://m", ""),
    ]
    assert all(finding.ok for finding in findings)
    assert as_table(findings).endswith("11 checks, all ok")


@pytest.mark.parametrize(
    ("there", "named"),
    [
        ({"torch": "2.12.0"}, "torch 2.12.0 (the job: 2.13.0)"),
        ({"code": "0ld"}, "code 0ld (the job: c0ffee)"),
        ({"ray": "2.60.0"}, "ray 2.60.0 (the job: missing)"),
        ({"python": "3.11.0"}, "python 3.11.0 (the job: 3.12.1)"),
    ],
)
def test_versions(there: dict[str, str], named: str) -> None:
    finding = check_versions(GOOD.versions, changed(versions={**GOOD.versions, **there}))
    assert not finding.ok and finding.found == named and "image" in finding.remedy


def test_a_missing_package() -> None:
    finding = check_versions(GOOD.versions, changed(versions={"python": "3.12.1", "code": "c0ffee"}))
    assert "torch missing" in finding.found and not finding.ok


@pytest.mark.parametrize(
    ("ray", "facts", "remedy"),
    [
        (4, {"gpus": 0}, "CUDA build"),
        (4, {"gpus": 3}, "CUDA build"),
        (0, {"gpus": 4}, "--num-gpus"),
        (4, {"nccl": False}, "torch's CUDA build"),
    ],
)
def test_gpus(ray: int, facts: dict[str, object], remedy: str) -> None:
    finding = check_gpus(RayNode("a", 16, ray), changed(**facts))
    assert remedy in finding.remedy


def test_no_gpus_at_all_is_right() -> None:
    assert check_gpus(RayNode("a", 2, 0), changed(gpus=0, nccl=False)).ok


@pytest.mark.parametrize(
    ("gpus", "workers", "ok"), [(0, 4, True), (0, 5, False), (2, 3, False), (2, 2, True), (2, 1, True)]
)
def test_workers(gpus: float, workers: int, ok: bool) -> None:
    finding = check_workers([RayNode("a", 2, gpus), RayNode("b", 2, 0)], workers)
    assert finding.ok == ok and str(workers) in finding.found


def test_storage() -> None:
    failed = check_storage("runs", "/shared/runs", changed(written={"runs": "PermissionError: no"}))
    assert "PermissionError" in failed.found and "mount /shared/runs" in failed.remedy
    alone = check_storage("runs", "/shared/runs", changed(unseen={"runs": ["b", "c"]}))
    assert "b, c" in alone.found and "all nodes share" in alone.remedy


def test_data() -> None:
    missing = changed(node="b", data_error="/shared/celeba: not there", data_hash="", images=0)
    other = changed(node="c", data_hash="e", images=9)
    findings = check_data("/shared/celeba", [GOOD, missing, other])
    assert [finding.ok for finding in findings] == [True, False, False]
    assert "readable on this node" in findings[1].remedy and "others than on a" in findings[2].found


def test_disk() -> None:
    """Photographs need room in the cache; Ray's disk may have room and still be too full."""
    small = changed(free={**GOOD.free, "cache": 3 * GIB})
    assert [f.ok for f in check_disk(small, 0)] == [True, True, True]
    assert [f.ok for f in check_disk(small, 202_599)] == [True, False, True]
    full = changed(free={"ray": 4 * GIB})
    (finding,) = check_disk(full, 0)
    assert "96% full" in finding.found and "95%" in finding.remedy
    (finding,) = check_disk(changed(free={"runs": 0}, total={"runs": 0}), 0)
    assert not finding.ok


def test_clock() -> None:
    """The fastest round counts; what the way could hide is not held against the node."""
    assert check_clock("a", [(0.0, 30.0, 50.0), (100.0, 100.1, 100.2)]).ok
    late = check_clock("a", [(0.0, -3.0, 0.2)])
    assert not late.ok and late.found.startswith("-3.1") and "NTP" in late.remedy
    assert check_clock("a", [(0.0, 6.0, 8.0)]).ok
    assert not check_clock("a", [(0.0, float("inf"), 0.0)]).ok


def test_silent_nodes_and_servers() -> None:
    findings = [check_answer("node", "b", "no answer in 300 s"), check_mlflow("", "http://m: connecting: refused")]
    assert not any(finding.ok for finding in findings)
    table = as_table([Finding("x", "y", "z"), *findings])
    assert table.count("-> ") == 2 and table.endswith("3 checks, 2 FAILED") and "MLFLOW_TRACKING_URI" in table


def test_facts_of_this_machine(tmp_path: Path) -> None:
    """Real files: two names in one folder see each other, a folder that cannot be written says so, all is cleaned."""
    draw_dataset(tmp_path / "faces", 11, seed=0)
    wanted = Wanted({"runs": str(tmp_path / "my runs"), "cache": "/proc/none"}, ".check", str(tmp_path / "faces"))
    facts = collect("a", wanted)
    assert facts.images == 11 and not facts.data_error and facts.versions == versions()
    assert facts.written["runs"] == "" and facts.written["cache"] != ""
    assert facts.free["runs"] > 0 and set(facts.free) == {"runs", "cache"}
    assert (tmp_path / "my runs" / ".check" / "a").read_text() == "a"
    only_runs = dataclasses.replace(wanted, places={"runs": wanted.places["runs"]})
    assert unseen_files(["a"], only_runs) == {}
    assert unseen_files(["a", "b"], only_runs, patience=0.0) == {"runs": ["b"]}
    clean(wanted)
    assert list((tmp_path / "my runs").iterdir()) == []


def test_broken_data(tmp_path: Path) -> None:
    draw_dataset(tmp_path / "faces", 11, seed=0)
    for photograph in (tmp_path / "faces").rglob("*.jpg"):
        photograph.write_bytes(b"not a picture")
    facts = collect("a", Wanted({}, ".check", str(tmp_path / "faces")))
    assert "not an image" in facts.data_error
    assert "nothing" in collect("a", Wanted({}, ".check", str(tmp_path / "nothing"))).data_error
