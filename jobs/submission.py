"""What is sent to a cluster's job server: the command, its code, its environment, and an id made of the run's name.

One run has one job at a time. The first job of run `first` has the id `first`, the next ones (after a stop or a failure; Ray
never takes an id twice) `first.2`, `first.3`. While one of them runs, the same command follows it, since in this project
the same command always goes on with a run; another command is refused, since both would write in one run's folder.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from urllib.parse import urlsplit

SHARED_RUNS, SHARED_CACHE = "/shared/runs", "/shared/cache"
CODE = ("pipeline", "jobs", "data_prep", "pyproject.toml")
EXCLUDES = ("/*", "!/.", *(f"!/{name}" for name in CODE), "__pycache__", "*.egg-info")
"""For Ray's upload, as in .gitignore: only the code travels; whatever else lies in the folder (data, runs) stays here."""
WITH_FOLDERS = ("jobs.celeba_train", "jobs.cluster_check", "jobs.tune", "jobs.train", "jobs.stack")
"""Jobs with `--runs` and `--cache`."""
PATHS = ("--runs", "--cache", "--celeba", "--data", "--mnist", "--pixels", "--out")
STOP_SECONDS = 120
"""How long a stopped job may write its checkpoint before it is killed; Ray's default, 3 s, is too short."""
_SECRET = re.compile(r"PASSWORD|PASSWD|USERNAME|TOKEN|SECRET|CREDENTIAL|_KEY|AUTH")
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


class SubmissionError(ValueError):
    """The job cannot be sent as asked; says why and what to do."""


@dataclass(frozen=True)
class Job:
    """A job of the cluster: its id, status (PENDING, RUNNING, SUCCEEDED, FAILED, STOPPED) and command."""

    id: str
    status: str
    entrypoint: str

    @property
    def ended(self) -> bool:
        """It runs no more."""
        return self.status in _ENDED


@dataclass(frozen=True)
class Environment:
    """Variables for the job, and the names of those that were held back because they are secrets."""

    passed: Mapping[str, str] = field(default_factory=dict)
    withheld: tuple[str, ...] = ()


def run_name(module: str, arguments: Sequence[str]) -> str:
    """The run that `python -m module arguments` works on: its --name, else what the job itself calls it.

    Raises:
        SubmissionError: the job does not name its run by itself.
    """
    options = _options(arguments)
    if "--name" in options:
        return options["--name"]
    if module == "jobs.celeba_train":
        celeba = "--celeba" in options
        recipe = "faces_toy" if "--quick" in options else "celeba_beam" if celeba else "faces_quick"
        return f"{'celeba' if celeba else 'synthetic-faces'}-{options.get('--recipe', recipe)}"
    raise SubmissionError(f"{module}: give the job a name with --id NAME; a second job of that name is refused")


def base_id(name: str) -> str:
    """`name` as the first part of an id: letters, digits, `_` and `-`; a `.` ends it."""
    made = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")
    if not made:
        raise SubmissionError(f"{name!r} makes no id: it needs a letter or a digit")
    return made[:100]


def jobs_of(name: str, jobs: Sequence[Job]) -> list[Job]:
    """The jobs of the run `name`, the first one first."""
    pattern = re.compile(re.escape(base_id(name)) + r"(?:\.(\d+))?")
    numbered = [(int(match[1] or 1), job) for job in jobs if (match := pattern.fullmatch(job.id))]
    return [job for _, job in sorted(numbered, key=lambda pair: pair[0])]


def choose(name: str, entrypoint: str, jobs: Sequence[Job]) -> tuple[str, bool]:
    """(id, new): a new id for the run's next job, or the id of its running job, to be followed.

    Raises:
        SubmissionError: another command of the same run is running.
    """
    own = jobs_of(name, jobs)
    for job in own:
        if not job.ended:
            if job.entrypoint == entrypoint:
                return job.id, False
            raise SubmissionError(
                f"job {job.id} of the same run is {job.status} with another command ({job.entrypoint}): follow it with "
                f"--follow {job.id}, stop it with --stop {job.id}, or give this run another name"
            )
    last = max((int(job.id.rpartition(".")[2]) if "." in job.id else 1 for job in own), default=0)
    return base_id(name) + (f".{last + 1}" if last else ""), True


def complete(module: str, arguments: Sequence[str]) -> list[str]:
    """The job's arguments with `--runs` and `--cache` in shared storage where they are not given.

    Raises:
        SubmissionError: a path is relative: on the cluster it would lie in the job's working directory, which Ray deletes.
    """
    options = _options(arguments)
    made = list(arguments)
    if module in WITH_FOLDERS:
        for flag, default in (("--runs", SHARED_RUNS), ("--cache", SHARED_CACHE)):
            if flag not in options:
                made += [flag, default]
        if "--local" in options:
            raise SubmissionError("--local runs in one process without Ray: not on a cluster; leave it out")
    for flag, value in options.items():
        if flag in PATHS and "://" not in value and not PurePosixPath(value).is_absolute():
            raise SubmissionError(
                f"{flag} {value}: a relative path means nothing on the cluster; give one that all its nodes see, "
                f"like /shared/{PurePosixPath(value).name}"
            )
    return made


def entrypoint_of(module: str, arguments: Sequence[str]) -> str:
    """The shell command of the job. It replaces its shell, so a stop reaches it; without MLflow's address runs keep one."""
    command = f"exec python -m {shlex.join([module, *arguments])}"
    runs = _options(arguments).get("--runs", "")
    if module in WITH_FOLDERS and "://" not in runs:
        store = shlex.quote(f"sqlite:///{runs}/mlflow.db")  # MLflow's default would go with the working directory
        return f'[ -n "$MLFLOW_TRACKING_URI" ] || export MLFLOW_TRACKING_URI={store}; {command}'
    return command


def environment(environ: Mapping[str, str], further: Sequence[str] = ()) -> Environment:
    """MLFLOW_* and the variables named in `further`, without secrets: whoever sees the job sees its variables.

    Passwords, tokens and keys have to be in the cluster's own environment (a Kubernetes secret, the nodes' environment).

    Raises:
        SubmissionError: a variable of `further` is not set or looks like a secret; an address of MLflow with a password.
    """
    passed, withheld = {}, []
    for name, value in sorted(environ.items()):
        if not (name.startswith("MLFLOW_") and value):
            continue
        if _SECRET.search(name):
            withheld.append(name)
            continue
        if "://" in value and (urlsplit(value).username or urlsplit(value).password):
            raise SubmissionError(
                f"{name} holds a user or password, and a job's variables are shown to whoever sees the job: give the address "
                "without them; the cluster's environment has MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
        passed[name] = value
    for name in further:
        if _SECRET.search(name.upper()):
            raise SubmissionError(f"--env {name}: looks like a secret; put it into the cluster's own environment")
        if name not in environ:
            raise SubmissionError(f"--env {name}: it is not set here; set it, or leave --env {name} out")
        passed[name] = environ[name]
    return Environment(passed, tuple(withheld))


def names_this_machine(uri: str) -> bool:
    """Whether the host of an address means something else on another machine."""
    return "://" in uri and urlsplit(uri).hostname in ("localhost", "127.0.0.1", "::1")


def runtime_env(folder: str, passed: Mapping[str, str]) -> dict[str, object]:
    """Ray's runtime environment: the code of `folder`, and the job's variables."""
    variables = {
        "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS),
        "TQDM_MININTERVAL": "5",  # a log has a line for each state of a bar
        **passed,
    }
    return {"working_dir": folder, "excludes": list(EXCLUDES), "env_vars": variables}


def _options(arguments: Sequence[str]) -> dict[str, str]:
    """Flag -> its value ("" where another flag or nothing follows), from `--flag value` and `--flag=value`."""
    found = {}
    for index, argument in enumerate(arguments):
        if argument.startswith("--"):
            flag, equals, value = argument.partition("=")
            following = arguments[index + 1] if index + 1 < len(arguments) else "--"
            found[flag] = value if equals else "" if following.startswith("--") else following
    return found
