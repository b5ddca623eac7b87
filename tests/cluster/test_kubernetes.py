"""The Kubernetes files: KubeRay's kinds against a strict schema, the others against Kubernetes' own, and our rules."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cluster_files import CLUSTER, KUBERNETES_FILES, documents, kubernetes_problems, pods, server_problems

pytest.importorskip("kubernetes_validate", reason='the Kubernetes files need pip install "beam-pipeline[dev]"')
CLUSTER_FILE = CLUSTER / "kuberay" / "cluster.yaml"
CPU_FILE = CLUSTER / "kuberay" / "cluster-cpu.yaml"
JOB_FILE = CLUSTER / "kuberay" / "job.yaml"
SERVER_FILE = CLUSTER / "mlflow" / "kubernetes" / "server.yaml"


@pytest.mark.parametrize("path", KUBERNETES_FILES, ids=lambda path: str(path.relative_to(CLUSTER)))
def test_valid(path: Path) -> None:
    """No complaints about any document of the file."""
    found = documents(path)
    assert found
    for document in found:
        assert kubernetes_problems(document) == []


def head(document: Any) -> Any:
    """The head's container."""
    return document["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]


def group(document: Any) -> Any:
    """The worker group."""
    return document["spec"]["workerGroupSpecs"][0]


CLUSTER_FAULTS: dict[str, Callable[[Any], Any]] = {
    "'rayStartParam' was unexpected": lambda d: group(d).update(rayStartParam={}),
    "'two' is not of type 'integer'": lambda d: group(d).update(replicas="two"),
    "'maxReplicas' is a required property": lambda d: group(d).pop("maxReplicas"),
    "resources.limits.memory is not set": lambda d: head(d)["resources"]["limits"].pop("memory"),
    "resources.requests.cpu is not set": lambda d: head(d)["resources"].pop("requests"),
    "autoscaler: resources.limits.cpu is not set": lambda d: d["spec"]["autoscalerOptions"].pop("resources"),
    "another user than root": lambda d: head(d)["securityContext"].update(runAsUser=0),
    "all are to be dropped": lambda d: head(d)["securityContext"].pop("capabilities"),
    "allowPrivilegeEscalation: it is to be false": lambda d: head(d)["securityContext"].pop("allowPrivilegeEscalation"),
    "seccompProfile: it is to be RuntimeDefault": lambda d: group(d)["template"]["spec"].pop("securityContext"),
    "'imagePullSecret' was unexpected": lambda d: group(d)["template"]["spec"].update(imagePullSecret="x"),
    "'envFroms' was unexpected": lambda d: head(d).update(envFroms=[]),
    "a tag with a version is needed": lambda d: head(d).update(image="registry.example.com/beam:latest"),
    "not the project's version": lambda d: head(d).update(image="registry.example.com/beam:9.9.9-gpu"),
    "MLFLOW_TRACKING_PASSWORD as a literal": lambda d: head(d)["env"].append(
        {"name": "MLFLOW_TRACKING_PASSWORD", "value": "x"}
    ),
    "hostPort": lambda d: head(d)["ports"][0].update(hostPort=6379),
    "hostNetwork: not here": lambda d: group(d)["template"]["spec"].update(hostNetwork=True),
    "token authentication with a secret": lambda d: d["spec"].pop("authOptions"),
    "'off' is not one of": lambda d: d["spec"]["authOptions"].update(mode="off"),
    "serviceType: it is to be ClusterIP": lambda d: d["spec"]["headGroupSpec"].update(serviceType="LoadBalancer"),
}


@pytest.mark.parametrize("complaint", CLUSTER_FAULTS)
def test_fault_in_a_ray_cluster_is_caught(complaint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One fault at a time, each with the complaint that names it."""
    monkeypatch.delenv("KUBERAY_CRD_DIR", raising=False)  # its words differ
    (document,) = copy.deepcopy(documents(CLUSTER_FILE))
    document = unshared(document)
    CLUSTER_FAULTS[complaint](document)
    assert any(complaint in problem for problem in kubernetes_problems(document)), kubernetes_problems(document)


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        (lambda spec: spec.update(entrypont=spec.pop("entrypoint")), "'entrypont' was unexpected"),
        (lambda spec: spec.update(backoffLimit="two"), "'two' is not of type 'integer'"),
        (lambda spec: spec.pop("rayClusterSpec"), "is not valid under any of the given schemas"),
        (lambda spec: spec["submitterPodTemplate"]["spec"]["containers"][0].pop("resources"), "limits.cpu is not set"),
    ],
)
def test_fault_in_a_ray_job_is_caught(fault: Any, complaint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A typo, a word for a number, no cluster, no limit."""
    monkeypatch.delenv("KUBERAY_CRD_DIR", raising=False)
    document = unshared(documents(JOB_FILE)[0])
    fault(document["spec"])
    assert any(complaint in problem for problem in kubernetes_problems(document)), kubernetes_problems(document)


def test_fault_in_a_core_kind_is_caught() -> None:
    """A typo, a word for a number, a port to the outside, a secret in a file."""
    service, deployment = (unshared(document) for document in documents(SERVER_FILE))
    service["spec"]["type"] = "NodePort"
    assert any("ClusterIP" in problem for problem in kubernetes_problems(service))
    typo = copy.deepcopy(deployment)
    typo["spec"]["template"]["spec"]["containers"][0]["volumeMount"] = []
    assert any("volumeMount" in problem for problem in kubernetes_problems(typo))
    deployment["spec"]["replicas"] = "two"
    assert any("'two'" in problem for problem in kubernetes_problems(deployment))
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"a": "b"}}
    assert kubernetes_problems(secret) == ["a Secret in a file: make it with kubectl"]


def test_the_job_has_the_cluster_of_cluster_yaml() -> None:
    """What is written twice is the same."""
    assert documents(JOB_FILE)[0]["spec"]["rayClusterSpec"] == documents(CLUSTER_FILE)[0]["spec"]


def test_the_cpu_cluster_differs_in_its_worker_group_and_image_alone() -> None:
    """What is written twice is the same, but for what has to differ."""
    gpu, cpu = (unshared(documents(path)[0]) for path in (CLUSTER_FILE, CPU_FILE))
    assert head(gpu).pop("image").endswith("-gpu") and head(cpu).pop("image").endswith("-cpu")
    for cluster in (gpu, cpu):
        worker = cluster["spec"].pop("workerGroupSpecs")[0]["template"]["spec"]
        assert ("nvidia.com/gpu" in worker["containers"][0]["resources"]["limits"]) == (cluster is gpu)
    assert gpu == cpu


def test_ray_nodes_have_shared_memory_and_shared_storage() -> None:
    """A memory volume within the memory limit, and the claim of storage.yaml at /shared."""
    (claim,) = documents(CLUSTER / "kuberay" / "storage.yaml")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for path in (CLUSTER_FILE, CPU_FILE):
        for where, template in pods(documents(path)[0]):
            volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
            (container,) = template["spec"]["containers"]
            mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
            memory = mounts["/dev/shm"]["emptyDir"]
            assert memory["medium"] == "Memory", where
            assert gibibytes(memory["sizeLimit"]) < gibibytes(container["resources"]["limits"]["memory"]), where
            assert mounts["/shared"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


def test_every_pod_is_selected_by_a_network_policy() -> None:
    """Policies and services select by labels that the pods have; what a policy lets in or out is a pod here."""
    everything = [document for path in KUBERNETES_FILES for document in documents(path)]
    labels = [template["metadata"]["labels"] for document in everything for _, template in pods(document)]
    components = {label["app.kubernetes.io/component"] for label in labels}
    assert components == {"ray", "submitter", "mlflow", "database", "objects"}
    covered, named = set(), set()
    for policy in (document for document in everything if document["kind"] == "NetworkPolicy"):
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
        selector = policy["spec"]["podSelector"]
        covered |= {selector["matchLabels"].get("app.kubernetes.io/component")}
        covered |= {value for term in selector.get("matchExpressions", []) for value in term["values"]}
        for rule in [*policy["spec"]["ingress"], *policy["spec"]["egress"]]:
            for peer in [*rule.get("from", []), *rule.get("to", [])]:
                named |= {peer.get("podSelector", {}).get("matchLabels", {}).get("app.kubernetes.io/component")}
    assert components - {"submitter"} <= covered  # nobody calls the submitter
    assert named - {None} <= components
    for service in (document for document in everything if document["kind"] == "Service"):
        assert service["spec"]["selector"]["app.kubernetes.io/component"] == service["metadata"]["name"]
        assert service["spec"]["selector"] in labels


def test_mlflow_server() -> None:
    """Its command line, and the complaint about each option that is missing."""
    command = documents(SERVER_FILE)[1]["spec"]["template"]["spec"]["containers"][0]["command"]
    assert server_problems(command) == []
    for option in command[2:]:
        if not option.startswith(("--host", "--port", "--workers")):
            assert server_problems([part for part in command if part != option]), option
    assert server_problems([*command, "--allowed-hosts=*"])
    assert server_problems([*command, "--backend-store-uri=postgresql+psycopg2://mlflow:pass@database:5432/mlflow"])


def gibibytes(quantity: str) -> float:
    """The number of a quantity in Gi."""
    assert quantity.endswith("Gi")
    return float(quantity.removesuffix("Gi"))


def unshared(document: Any) -> Any:
    """A copy in which what YAML's anchors share is apart."""
    if isinstance(document, dict):
        return {key: unshared(value) for key, value in document.items()}
    return [unshared(item) for item in document] if isinstance(document, list) else document
