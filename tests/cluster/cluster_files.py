"""What is wrong with a file of cluster/: functions from a parsed document to a list of complaints, empty when there are none.

They need no cluster, no Docker and no network. The tests give them the files, and the files with a fault.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import yaml

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
KUBERNETES = "1.33"
"""The version of Kubernetes that the core kinds are checked against."""
FILES = sorted(path for path in CLUSTER.rglob("*") if path.is_file())
KUBERNETES_FILES = sorted([*(CLUSTER / "kuberay").glob("*.yaml"), *(CLUSTER / "mlflow" / "kubernetes").glob("*.yaml")])
RAY_UP_FILES = sorted((CLUSTER / "ray_up").glob("*.yaml"))
COMPOSE_FILE = CLUSTER / "mlflow" / "compose.yaml"

Document = dict[str, Any]


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice; YAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]  # a merge (<<) may bring what is overridden: not counted here
        twice = {str(key) for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"keys twice: {', '.join(twice)}", node.start_mark)
        return super().construct_mapping(node, deep)


def documents(path: Path) -> list[Document]:
    """The YAML documents of a file."""
    return list(yaml.load_all(path.read_text(), _Loader))


def pins() -> dict[str, str]:
    """Package -> version of constraints.txt."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    return {name.lower(): version for name, version in (line.split("==") for line in lines)}


def kubernetes_problems(document: Document) -> list[str]:
    """Against the schema of its kind, and our rules: confined pods with limits, nothing open to the outside, no secrets."""
    found = _kuberay_problems(document) if document["apiVersion"].startswith("ray.io/") else core_problems(document)
    for where, template in pods(document):
        found += [
            f"{where}: {problem}" for problem in core_problems(_as_pod(template)) + _pod_problems(template["spec"])
        ]
    spec = document.get("spec", {})
    cluster = spec.get("rayClusterSpec", spec if document["kind"] == "RayCluster" else None)
    if cluster is not None:
        if cluster.get("authOptions", {}).get("mode") != "token" or not cluster["authOptions"].get("secretName"):
            found.append("authOptions: token authentication with a secret is to be on")
        if cluster["headGroupSpec"].get("serviceType") != "ClusterIP":
            found.append("headGroupSpec.serviceType: it is to be ClusterIP")
        found += _container_problems("autoscaler", cluster.get("autoscalerOptions", {}), {})
    if document["kind"] == "Service" and spec.get("type") != "ClusterIP":
        found.append("type: a Service is to be ClusterIP; what is outside comes by port-forward or an ingress")
    if document["kind"] == "Secret":
        found.append("a Secret in a file: make it with kubectl")
    return found


def core_problems(document: Document) -> list[str]:
    """Against Kubernetes' own schema, in which a field it does not know is an error."""
    import kubernetes_validate

    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
        place = ".".join(str(part) for part in getattr(error, "absolute_path", ()))
        return [f"{place}: {error.message}"]
    return []


def _kuberay_problems(document: Document) -> list[str]:
    folder = os.environ.get("KUBERAY_CRD_DIR")
    schema = _crd_schema(Path(folder), document["kind"]) if folder else json.loads(_SCHEMA.read_text())
    if not folder and document["kind"] in schema["$defs"]:  # its own errors, not those of "one of the kinds"
        schema = {**schema, "oneOf": [{}], "$ref": f"#/$defs/{document['kind']}"}
    return _schema_problems(document, jsonschema.Draft202012Validator(schema))


_SCHEMA = Path(__file__).with_name("kuberay_schema.json")


def _crd_schema(folder: Path, kind: str) -> Any:
    """The schema of `kind` in KubeRay's custom resource definitions, made strict."""
    for path in sorted(folder.glob("*.yaml")):
        for crd in yaml.safe_load_all(path.read_text()):
            if crd and crd.get("kind") == "CustomResourceDefinition" and crd["spec"]["names"]["kind"] == kind:
                version = next(v for v in crd["spec"]["versions"] if v["name"] == "v1")
                return _strict(version["schema"]["openAPIV3Schema"], top=True)
    raise FileNotFoundError(f"KUBERAY_CRD_DIR={folder} has no definition of {kind}")


def _strict(schema: Any, top: bool = False) -> Any:
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    strict = {key: _strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict):
        strict["properties"] = {key: _strict(value) for key, value in schema["properties"].items()}
        if top:
            strict["properties"]["metadata"] = {"type": "object"}
        if schema.get("type") == "object":
            strict.setdefault("additionalProperties", False)
    return strict


def _schema_problems(document: Document, validator: Any) -> list[str]:
    errors = sorted(validator.iter_errors(document), key=lambda error: list(map(str, error.absolute_path)))
    return [f"{'.'.join(str(part) for part in error.absolute_path)}: {error.message}" for error in errors]


def pods(document: Document) -> Iterator[tuple[str, Document]]:
    """(where, pod template) of everything in the document that makes pods."""
    spec = document.get("spec", {})
    if document["kind"] in ("Deployment", "StatefulSet", "DaemonSet", "Job"):
        yield document["kind"], spec["template"]
    if "submitterPodTemplate" in spec:
        yield "submitter", spec["submitterPodTemplate"]
    cluster = spec.get("rayClusterSpec", spec)
    if "headGroupSpec" in cluster:
        yield "head", cluster["headGroupSpec"]["template"]
        for group in cluster.get("workerGroupSpecs", []):
            yield f"group {group['groupName']}", group["template"]


def _as_pod(template: Document) -> Document:
    metadata = {"name": "pod", **template.get("metadata", {})}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def _pod_problems(spec: Document) -> list[str]:
    found = [f"{key}: not here" for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key)]
    found += [f"volume {v['name']}: the node's own files" for v in spec.get("volumes", []) if "hostPath" in v]
    context = spec.get("securityContext", {})
    if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        found.append("securityContext.seccompProfile: it is to be RuntimeDefault")
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        found += _container_problems(container["name"], container, context)
        found += image_problems(container["image"])
        for variable in container.get("env", []):
            if _SECRET_NAME.search(variable["name"]) and "value" in variable:
                found.append(f"{container['name']}: {variable['name']} as a literal; take it from a secret")
        found += [f"{container['name']}: hostPort" for port in container.get("ports", []) if "hostPort" in port]
    return found


def _container_problems(name: str, container: Document, pod_context: Document) -> list[str]:
    found = []
    for kind in ("requests", "limits"):
        missing = {"cpu", "memory"} - set(container.get("resources", {}).get(kind, {}))
        found += [f"{name}: resources.{kind}.{resource} is not set" for resource in sorted(missing)]
    context = container.get("securityContext", {})
    both = {**pod_context, **context}
    if both.get("runAsNonRoot") is not True or both.get("runAsUser", 1000) == 0:
        found.append(f"{name}: securityContext: it is to run as another user than root")
    if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
        found.append(f"{name}: securityContext.allowPrivilegeEscalation: it is to be false")
    if context.get("capabilities", {}).get("drop") != ["ALL"] or context.get("capabilities", {}).get("add"):
        found.append(f"{name}: securityContext.capabilities: all are to be dropped")
    return found


def image_problems(image: str) -> list[str]:
    """An image needs a tag that says a version; ours the version of the project."""
    name, _, tag = image.rpartition(":")
    if not name or "/" in tag or not re.search(r"\d+\.\d+", tag):
        return [f"image {image}: a tag with a version is needed"]
    if name.endswith("/beam") and not re.fullmatch(r"0\.1\.0-(cpu|gpu)", tag):
        return [f"image {image}: not the project's version and variant"]
    return []


_SECRET_NAME = re.compile(r"PASSWORD|SECRET|TOKEN|KEY|CREDENTIAL")
_SERVICE_KEYS = {
    *("image", "user", "command", "environment", "volumes", "networks", "ports", "depends_on", "healthcheck", "deploy"),
    *("restart", "init", "cap_drop", "security_opt"),
}


def with_defaults(text: str) -> str:
    """`text` of a compose file with every ${NAME:-default} replaced by its default."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def compose_problems(document: Document) -> list[str]:
    """Our rules for a compose file: confined services with limits, loopback ports, secrets from the environment only."""
    known = ("name", "services", "networks", "volumes")
    found = [f"{key}: not a key we use" for key in document if key not in known and not key.startswith("x-")]
    services = document["services"]
    for name, service in services.items():
        say = [f"{key}: not a key we use" for key in service if key not in _SERVICE_KEYS]
        say += image_problems(with_defaults(service.get("image", "")))
        if not re.fullmatch(r"[1-9]\d*:[1-9]\d*", str(service.get("user", ""))):
            say.append("user: numbers of another user than root are needed")
        if service.get("cap_drop") != ["ALL"] or service.get("security_opt") != ["no-new-privileges:true"]:
            say.append("cap_drop, security_opt: all capabilities are to be dropped, and no new privileges")
        limits = service.get("deploy", {}).get("resources", {}).get("limits", {})
        say += [f"deploy.resources.limits.{key} is not set" for key in ("cpus", "memory") if key not in limits]
        for port in service.get("ports", []):
            if not isinstance(port, str) or not with_defaults(port).startswith("127.0.0.1:"):
                say.append(f"port {port}: it is to be on 127.0.0.1")
        for key, value in service.get("environment", {}).items():
            reference = re.fullmatch(r"\$\{\w+:\?[^}]{10,}\}", str(value))
            if _SECRET_NAME.search(key) and not reference:
                say.append(f"{key}: a secret comes as ${{NAME:?what to set}}")
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if not source.startswith("./") and source not in document.get("volumes", {}):
                say.append(f"volume {source} is not declared")
            if source.startswith("./") and not (CLUSTER / "mlflow" / source).is_file():
                say.append(f"volume {source}: there is no such file")
        say += [f"network {n} is not declared" for n in service.get("networks", []) if n not in document["networks"]]
        say += [
            f"depends_on {other}: no such service" for other in service.get("depends_on", {}) if other not in services
        ]
        found += [f"{name}: {problem}" for problem in say]
    return found


def server_problems(command: list[str]) -> list[str]:
    """An MLflow server's command line: login, artifact proxy to S3, PostgreSQL, named hosts, no password in it."""
    options = dict(part.removeprefix("--").partition("=")[::2] for part in command if part.startswith("--"))
    found = [] if command[:2] == ["mlflow", "server"] else ["not `mlflow server`"]
    if options.get("app-name") != "basic-auth":
        found.append("--app-name=basic-auth: the login is to be on")
    if "serve-artifacts" not in options or not options.get("artifacts-destination", "").startswith("s3://"):
        found.append("--serve-artifacts and --artifacts-destination=s3://...: artifacts are to go through the server")
    if not re.fullmatch(r"postgresql\+psycopg2://\w+@\w+:5432/\w+", options.get("backend-store-uri", "")):
        found.append("--backend-store-uri: PostgreSQL without a password (PGPASSWORD has it)")
    hosts = with_defaults(options.get("allowed-hosts", "*")).split(",")
    if not {"mlflow", "mlflow:*", "localhost", "localhost:*"} <= set(hosts) or any(
        host.strip("*:") == "" for host in hosts
    ):
        found.append("--allowed-hosts: names, with and without a port, and not all")
    if "disable-security-middleware" in options:
        found.append("--disable-security-middleware: not here")
    return found


def ray_up_problems(config: Document) -> list[str]:
    """Against Ray's own schema for `ray up`, and our rules: the token on every node, the dashboard on loopback."""
    import ray

    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    found = _schema_problems(config, jsonschema.Draft7Validator(schema))
    options = config.get("docker", {}).get("run_options", [])
    token = "/home/beam/.ray/auth_token"
    if config.get("file_mounts", {}).get(token) != "~/.ray/auth_token":
        found.append("file_mounts: the token is to be on every node")
    for option in ("--env=RAY_AUTH_MODE=token", f"--env=RAY_AUTH_TOKEN_PATH={token}", "--cap-drop=ALL"):
        if option not in options:
            found.append(f"docker.run_options: {option} is missing")
    if "--security-opt=no-new-privileges" not in options or any(
        "privileged" in o and "no-new" not in o for o in options
    ):
        found.append("docker.run_options: no new privileges")
    found += image_problems(config.get("docker", {}).get("image", ""))
    starts = [line for line in config.get("head_start_ray_commands", []) if "ray start" in line]
    if len(starts) != 1 or "--dashboard-host=127.0.0.1" not in starts[0]:
        found.append("head_start_ray_commands: the dashboard is to be on loopback")
    return found


_LITERALS = (
    (re.compile(r"AKIA[0-9A-Z]{16}"), "an AWS key"),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY"), "a private key"),
    (re.compile(r"\b(?:[0-9a-f]{32,}|[A-Za-z0-9+/]{40,}={0,2})\b"), "a long random text"),
    (re.compile(r"://[^/\s:@$]+:[^/\s@]+@"), "a password in a URL"),
    (
        re.compile(
            r"(?i)\b[\w.-]*(?:password|passwd|secret|token|api[_-]?key|access[_-]?key)\w*\s*[:=]\s*[\"']?(?=[^\s\"'$<{])([\w+/=.-]{8,})"
        ),
        "a secret as a literal",
    ),
)
_NO_SECRETS = re.compile(
    r"^(?:/|\.|~|beam-|mlflow-|token$|secretKeyRef|when_required|auth_token|POSTGRES|MLFLOW_|RAY_|S3_|required\b)"
)


def secret_literals(text: str) -> list[str]:
    """What in a text looks like a secret."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        for pattern, what in _LITERALS:
            for match in pattern.finditer(line):
                if match.lastindex and _NO_SECRETS.match(match.group(1)):
                    continue
                found.append(f"line {number}: {what}")
    return found
