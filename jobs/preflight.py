"""What is wrong with a cluster, told from what its nodes said: one small function per check, and a table of all.

Each check gets facts and returns findings, one for each node it speaks of; what failed says what to do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jobs.node_facts import NodeFacts

MAX_SKEW = 2.0
"""Seconds between two clocks: metrics, locks and files of one run carry times of several machines."""
BYTES_PER_IMAGE = 64 * 64 * 3 + 1024 * 4
"""In the cache: pixels (uint8) and latents (float32)."""
GIB = 2**30
RESERVE = {"runs": 2 * GIB, "cache": GIB, "ray": 2 * GIB}
FULLEST = 0.95
"""Ray starts no objects on a disk that is fuller."""
ALL = "all"


@dataclass(frozen=True)
class Finding:
    """One line of the table: what was checked, on which node, what was found, and what to do when it is not right."""

    check: str
    node: str
    found: str
    remedy: str = ""

    @property
    def ok(self) -> bool:
        """Nothing has to be done."""
        return not self.remedy


@dataclass(frozen=True)
class RayNode:
    """A node as Ray lists it: its name, CPUs and GPUs."""

    name: str
    cpus: float
    gpus: float


def check_versions(expected: Mapping[str, str], facts: NodeFacts) -> Finding:
    """A node has the versions and the code of the process that runs the job (`expected`)."""
    names = sorted(set(expected) | set(facts.versions), key=lambda name: (name != "python", name))
    wrong = [
        f"{name} {facts.versions.get(name, 'missing')} (the job: {expected.get(name, 'missing')})"
        for name in names
        if facts.versions.get(name) != expected.get(name)
    ]
    if wrong:
        return Finding("versions", facts.node, ", ".join(wrong), "use one image or one environment on all nodes")
    return Finding("versions", facts.node, " ".join(f"{name} {expected[name]}" for name in names))


def check_gpus(node: RayNode, facts: NodeFacts) -> Finding:
    """What Ray hands out is what torch can use, and nccl is there for it."""
    if facts.gpus != node.gpus:
        remedy = (
            "a CUDA build of torch and a driver that fits it (image with EXTRA=gpu)"
            if facts.gpus < node.gpus
            else "start the node with --num-gpus, or give its pod nvidia.com/gpu"
        )
        return Finding("GPUs", facts.node, f"torch sees {facts.gpus}, Ray has {node.gpus:g}", remedy)
    if facts.gpus and not facts.nccl:
        return Finding("GPUs", facts.node, f"{facts.gpus}, torch without nccl", "install torch's CUDA build for Linux")
    return Finding("GPUs", facts.node, f"{facts.gpus} x {facts.gpu_name}, nccl" if facts.gpus else "none")


def check_workers(nodes: Sequence[RayNode], workers: int) -> Finding:
    """There is a place for each worker: a GPU each when there are as many as workers, else a CPU each."""
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    found = f"{workers} workers; {len(nodes)} nodes with {cpus:g} CPUs and {gpus:g} GPUs"
    if cpus < workers:
        return Finding("workers", ALL, found, f"give at most {int(cpus)} workers, or add nodes")
    if 0 < gpus < workers:
        return Finding("workers", ALL, found, f"give {int(gpus)} workers, or none would use a GPU")
    return Finding("workers", ALL, found)


def check_storage(place: str, path: str, facts: NodeFacts) -> Finding:
    """A node writes, reads and deletes in a place, and reads there what the other nodes wrote."""
    check = f"storage {place}"
    if error := facts.written.get(place):
        remedy = f"mount {path} on this node for writing by the user of Ray, or give another folder"
        return Finding(check, facts.node, f"{path}: {error}", remedy)
    if missing := facts.unseen.get(place):
        found = f"{path}: files of {', '.join(missing)} are not seen"
        return Finding(check, facts.node, found, "give a folder of a file system that all nodes share")
    return Finding(check, facts.node, f"{path}: written, read, deleted")


def check_data(celeba: str, facts: Sequence[NodeFacts]) -> list[Finding]:
    """Every node finds the photographs, and the same ones."""
    findings = []
    known = next((f.data_hash for f in facts if not f.data_error), "")
    for node in facts:
        if node.data_error:
            findings.append(Finding("data", node.node, node.data_error, f"make {celeba} readable on this node"))
        elif node.data_hash != known:
            found = f"{celeba}: {node.images} photographs, others than on {facts[0].node}"
            findings.append(Finding("data", node.node, found, "give a folder or zip that all nodes share"))
        else:
            findings.append(Finding("data", node.node, f"{celeba}: {node.images or 'some'} photographs"))
    return findings


def check_disk(facts: NodeFacts, images: int) -> list[Finding]:
    """Each disk has room for what a run of so many photographs writes, with a reserve; Ray's is not nearly full."""
    findings = []
    for place, free in facts.free.items():
        needed = RESERVE[place] + (images * BYTES_PER_IMAGE if place == "cache" else 0)
        used = 1 - free / max(1, facts.total[place])
        found = f"{place}: {free / GIB:.1f} GiB free, {needed / GIB:.1f} needed"
        remedy = ""
        if free < needed:
            remedy = "make room, or give another folder"
        elif place == "ray" and used > FULLEST:
            found += f", {used:.0%} full"
            remedy = f"make room: Ray stops at {FULLEST:.0%}; or start it with --temp-dir on another disk"
        findings.append(Finding("disk", facts.node, found, remedy))
    return findings


def check_clock(node: str, rounds: Sequence[tuple[float, float, float]]) -> Finding:
    """A node's clock against this process's.

    Args:
        node: its name.
        rounds: (sent, the node's time, received) in seconds; the fastest one counts, and what its way could hide is allowed.
    """
    sent, there, received = min(rounds, key=lambda times: times[2] - times[0])
    skew, unsure = there - (sent + received) / 2, (received - sent) / 2
    found = f"{skew:+.3f} s (+- {unsure:.3f})"
    if abs(skew) - unsure > MAX_SKEW:
        return Finding("clock", node, found, "run chrony or another NTP client on this node")
    return Finding("clock", node, found)


def check_answer(check: str, node: str, error: str) -> Finding:
    """A node that could not be asked at all."""
    return Finding(check, node, error, "see that the node has this project's environment (`make setup`, the image)")


def check_mlflow(found: str, error: str) -> Finding:
    """The tracking server took a run and a file; `error` says why not."""
    if error:
        return Finding(
            "MLflow", "driver", error, "set MLFLOW_TRACKING_URI, its user and password, and start the server"
        )
    return Finding("MLflow", "driver", found)


def as_table(findings: Sequence[Finding]) -> str:
    """One line for each check and node, failures with what to do; for people."""
    lines = []
    for finding in findings:
        state = "ok" if finding.ok else "FAILED"
        lines.append(f"{state:7s} {finding.check:14s} {finding.node:22s} {finding.found}")
        if finding.remedy:
            lines.append(f"{'':46s} -> {finding.remedy}")
    failed = sum(not finding.ok for finding in findings)
    lines.append(f"{len(findings)} checks, " + (f"{failed} FAILED" if failed else "all ok"))
    return "\n".join(lines)
