"""What a run needs, looked at on every node before anything is spent: versions, GPUs, storage, data, MLflow, disks, clocks.

One task without CPUs or GPUs goes to each node of the cluster (or to this machine, when RAY_ADDRESS is not set). Exit status:
0 all is well, 1 something failed (the table says what to do), 2 a user's error.
"""

import argparse
import dataclasses
import os
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jobs.node_facts import NodeFacts, Wanted, clean, collect, now, unseen_files, versions
from jobs.preflight import (
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
from jobs.ray_session import ray_session
from pipeline.runs.tracked import EXPERIMENT

SECONDS = 300.0
"""For one question to one node; listing 200 000 photographs on a network file system takes a while."""
ROUNDS = 5


def check_cluster(places: Mapping[str, str], celeba: str = "", workers: int | None = None) -> list[Finding]:
    """All checks, within a Ray session: facts from every node first, then what follows from them.

    Args:
        places: "runs" and "cache" -> folder or URI.
        celeba: folder or zip of the photographs; "" when there are none to check.
        workers: how many the run will have; None: not checked.
    """
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    ids = {_name(node, alive): node["NodeID"] for node in alive}
    nodes = {
        name: RayNode(name, node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0))
        for name, node in zip(ids, alive)
    }
    wanted = Wanted(dict(places), f".cluster-check-{secrets.token_hex(4)}", celeba, _ray_folder())
    found: dict[str, NodeFacts] = {}
    findings = [check_workers(list(nodes.values()), workers)] if workers else []
    try:
        for name, answer in _ask(ids, lambda name: (collect, name, wanted)).items():
            if isinstance(answer, NodeFacts):
                found[name] = answer
            else:
                findings.append(check_answer("node", name, answer))
        there = {name: ids[name] for name in found}
        wrote = {place: [n for n, facts in found.items() if not facts.written[place]] for place in places}
        for name, unseen in _ask(there, lambda _: (unseen_files, list(found), wanted)).items():
            if isinstance(unseen, dict):  # who could not write is told once, at that node
                seen = {place: [n for n in missing if n in wrote[place]] for place, missing in unseen.items()}
                found[name] = dataclasses.replace(found[name], unseen=seen)
    finally:
        _ask(ids, lambda _: (clean, wanted))
    expected = versions()
    facts = list(found.values())
    findings += [check_versions(expected, node) for node in facts]
    findings += [check_gpus(nodes[node.node], node) for node in facts]
    findings += [check_storage(place, path, node) for place, path in places.items() for node in facts]
    if celeba:
        findings += check_data(celeba, facts)
    images = max((node.images for node in facts), default=0)
    findings += [finding for node in facts for finding in check_disk(node, images)]
    findings += [check_clock(name, _rounds(node_id)) for name, node_id in there.items()]
    return [*findings, _mlflow()]


def _ask(ids: Mapping[str, str], question: Callable[[str], tuple[Any, ...]]) -> dict[str, Any]:
    """The answer of every node to `question(name)`, a function and its arguments; text where there is none."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = {}
    for name, node_id in ids.items():
        function, *arguments = question(name)
        there = NodeAffinitySchedulingStrategy(node_id, soft=False)
        task = ray.remote(function).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
        asked[name] = task.remote(*arguments)
    answers: dict[str, Any] = {}
    end = time.monotonic() + SECONDS
    for name, reference in asked.items():
        try:
            answers[name] = ray.get(reference, timeout=max(1.0, end - time.monotonic()))
        except ray.exceptions.GetTimeoutError:
            ray.cancel(reference, force=True)
            answers[name] = f"no answer in {SECONDS:.0f} s"
        except ray.exceptions.RayError as error:
            answers[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[-1][:300]}"
    return answers


def _rounds(node_id: str) -> list[tuple[float, float, float]]:
    """Times (sent, there, received) of questions to a node; its worker is warm."""
    times = []
    for _ in range(ROUNDS):
        sent = time.time()
        there = _ask({"": node_id}, lambda _: (now,))[""]
        received = time.time()
        if isinstance(there, float):
            times.append((sent, there, received))
    return times or [(0.0, float("inf"), 0.0)]  # it answered before and does not now


def _name(node: Mapping[str, Any], nodes: list[dict[str, Any]]) -> str:
    """A node's address, with the beginning of its id where several nodes share it."""
    address = str(node["NodeManagerAddress"])
    shared = sum(other["NodeManagerAddress"] == address for other in nodes) > 1
    return f"{address}#{node['NodeID'][:6]}" if shared else address


def _ray_folder() -> str:
    """Ray's temporary folder; the same path on all nodes of a usual cluster."""
    import ray

    return str(ray.get_runtime_context().get_temp_dir())


def _mlflow() -> Finding:
    from pipeline.tracking.check import check_tracking
    from pipeline.tracking.server import TrackingError

    try:
        return check_mlflow(f"{check_tracking(EXPERIMENT)}: a run and a file written, read, deleted", "")
    except TrackingError as error:
        return check_mlflow("", str(error))


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status, see above."""
    parser = argparse.ArgumentParser(prog="python -m jobs.cluster_check", description=__doc__)
    parser.add_argument("--celeba", default="", help="folder or zip of the photographs")
    parser.add_argument("--runs", default="runs", help="where the run's folder will lie (default: runs)")
    parser.add_argument("--cache", default="cache", help="where data that runs share will lie (default: cache)")
    parser.add_argument("--workers", type=int, help="how many the run will have")
    args = parser.parse_args(argv)
    places = {
        name: value if "://" in value else str(Path(value).resolve())
        for name, value in (("runs", args.runs), ("cache", args.cache))
    }
    celeba = args.celeba if not args.celeba or "://" in args.celeba else str(Path(args.celeba).resolve())
    try:
        with ray_session(Path("cache").resolve(), os.cpu_count() or 1):
            findings = check_cluster(places, celeba, args.workers)
    except (ValueError, ConnectionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(as_table(findings))
    return 0 if all(finding.ok for finding in findings) else 1


if __name__ == "__main__":
    from jobs.cluster_check import main as imported_main

    sys.exit(imported_main())
