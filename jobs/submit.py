"""Send a job to a running Ray cluster, follow it from here, and come back to it: `python -m jobs.submit -- MODULE ARGS...`.

The job does not need this terminal: closing it, or losing the connection, changes nothing there, and `--follow ID` shows
the log again. Ctrl-C asks whether to stop the job; a second one, or one without a terminal, only ends the following.

Exit status: the job's own; 130 when it was stopped; 2 a user's error; 75 when this command ended and the job goes on.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.ray_address import AddressError, address_kind
from jobs.ray_session import prepare_environment
from jobs.submission import (
    Job,
    SubmissionError,
    choose,
    complete,
    entrypoint_of,
    environment,
    names_this_machine,
    run_name,
    runtime_env,
)
from pipeline.provenance import environment_tags, project_root

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

    from jobs.follow import Client, Follower

DETACHED = 75


def connect(address: str) -> "Client":
    """The cluster's job server.

    Raises:
        AddressError: `address` is not one of a job server, nobody answers there, or the answer is no.
    """
    if address_kind(address) != "jobs":
        raise AddressError(
            f"RAY_ADDRESS={address}: jobs are sent to a job server, http://HOST:8265; a process on the cluster itself joins "
            "with this address (python -m jobs.celeba_train)"
        )
    prepare_environment(project_root() / "cache")  # RAY_ADDRESS is set: makes no token
    import requests
    from ray.exceptions import AuthenticationError

    from jobs.follow import Client

    for handler in logging.getLogger("ray").handlers:  # every ignored file, every upload
        handler.setLevel(logging.ERROR)
    try:
        return Client(address.rstrip("/"))
    except AuthenticationError:
        raise AddressError(f"{address} refuses {_token_place()}: get the token of the cluster's head") from None
    except (ConnectionError, requests.RequestException) as error:
        raise AddressError(
            f"no Ray job server answers at {address} ({type(error).__name__}): is the cluster up, and its port 8265 reachable "
            "from here (`ray dashboard`, `kubectl port-forward`, an ssh tunnel)?"
        ) from None
    except RuntimeError as error:
        raise AddressError(f"{address} is no job server of Ray: {str(error).splitlines()[0]}") from None


def _token_place() -> str:
    """Where this process has its token from, in words."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "the token in RAY_AUTH_TOKEN"
    if place := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return f"the token in {place} (RAY_AUTH_TOKEN_PATH)"
    return "a command without RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"


def submit(client: "Client", name: str, module: str, arguments: Sequence[str], folder: Path, env: Sequence[str]) -> str:
    """Send `python -m module arguments` with the code of `folder`, or find the running job of this command; its id.

    Raises:
        SubmissionError: what cannot be sent, or another command of the run `name` is running.
    """
    entrypoint = entrypoint_of(module, arguments)
    variables = environment(os.environ, env)
    job, new = choose(name, entrypoint, known_jobs(client))
    if not new:
        print(f"job {job} runs this command already: following it", flush=True)
        return job
    for variable in variables.withheld:
        print(f"not sent: {variable} (secrets come from the cluster's own environment)", flush=True)
    for variable, value in variables.passed.items():
        if names_this_machine(value):
            print(f"warning: {variable}={value} names the cluster's head there, not this machine", flush=True)
    tags = environment_tags()
    commit: dict[str, str] = {k: tags[k] for k in ("mlflow.source.git.commit", "git.dirty") if k in tags}
    told = {
        "BEAM_GIT_COMMIT": commit.get("mlflow.source.git.commit", ""),
        "BEAM_GIT_DIRTY": commit.get("git.dirty", ""),
    }
    passed = {**{key: value for key, value in told.items() if value}, **variables.passed}
    try:
        client.submit_job(
            entrypoint=entrypoint,
            submission_id=job,
            runtime_env=runtime_env(str(folder), passed),
            metadata={"run": name, **commit},
        )
    except RuntimeError as error:
        again, new = choose(name, entrypoint, known_jobs(client))
        if not new:  # another terminal was faster by a moment
            print(f"job {again} runs this command already: following it", flush=True)
            return again
        raise SubmissionError(f"the cluster did not take the job: {str(error).strip().splitlines()[-1]}") from None
    print(f"job {job} is on the cluster: {entrypoint}", flush=True)
    return job


def known_jobs(client: "Client") -> list[Job]:
    """All jobs that were submitted to the cluster and not forgotten since."""
    return [Job(d.submission_id, d.status.value, d.entrypoint) for d in client.list_jobs() if d.submission_id]


def follow(follower: "Follower", address: str, ask: Callable[[], str | None]) -> int:
    """Follow a job to its end; the exit status.

    Args:
        follower: of the job.
        address: for the command that comes back to it.
        ask: called after Ctrl-C; what the user answers, or None to leave the job alone and go.
    """
    from jobs.follow import LostContact

    again = f"follow it again with: RAY_ADDRESS={address} python -m jobs.submit --follow {follower.job}"
    try:
        while True:
            try:
                return ended(follower.run())
            except KeyboardInterrupt:
                answer = ask()
                if answer is None:
                    break
                if answer.strip().lower() in ("y", "yes"):
                    print(_stopping(follower), file=sys.stderr, flush=True)
                else:
                    print("it goes on", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        pass
    except LostContact as error:
        print(f"error: {error}", file=sys.stderr)
    print(f"\njob {follower.job} goes on without this terminal; {again}", file=sys.stderr, flush=True)
    return DETACHED


def _stopping(follower: "Follower") -> str:
    try:
        follower.client.stop_job(follower.job)
    except (OSError, RuntimeError) as error:
        return f"it could not be asked to stop ({type(error).__name__}); once more with Ctrl-C"
    return "asked it to stop; it writes a checkpoint first"


def ask_to_stop() -> str | None:
    """The answer of the person at the terminal; None without a terminal, or on a second Ctrl-C."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    print("\nstop the remote job? [y/N] (Ctrl-C again: leave it running) ", end="", file=sys.stderr, flush=True)
    try:
        answer = sys.stdin.readline()
    except KeyboardInterrupt:
        return None
    return answer or None  # the end of input is no answer


def ended(info: "JobDetails") -> int:
    """Say how a job ended; the exit status that stands for it."""
    print(f"job {info.submission_id}: {info.status.value}", file=sys.stderr, flush=True)
    if info.status.value == "STOPPED":
        return 130
    if info.status.value == "SUCCEEDED":
        return 0
    if info.driver_exit_code is None:  # its command never ran to an end: Ray has the reason
        print(f"error: {(info.message or 'no reason given').strip()}", file=sys.stderr)
    return info.driver_exit_code or 1


def as_table(details: Sequence[Any]) -> str:
    """Jobs, the newest first: id, status, when it began (UTC), minutes, command."""
    lines = [f"{'id':30s} {'status':10s} {'began (UTC)':17s} {'minutes':>8s}  command"]
    for job in sorted((d for d in details if d.submission_id), key=lambda d: -(d.start_time or 0)):
        began = datetime.fromtimestamp((job.start_time or 0) / 1000, UTC)
        until = datetime.fromtimestamp(job.end_time / 1000, UTC) if job.end_time else datetime.now(UTC)
        minutes = (until - began).total_seconds() / 60 if job.start_time else 0.0
        lines.append(
            f"{job.submission_id:30s} {job.status.value:10s} {began:%Y-%m-%d %H:%M}  {minutes:8.1f}  {job.entrypoint}"
        )
    return "\n".join(lines)


def check_command(module: str, arguments: Sequence[str]) -> None:
    """What the job would refuse about its command line, before anything is sent; ends the program as argparse does."""
    if module != "jobs.celeba_train":
        return
    from jobs.celeba_train import parse
    from jobs.recipes import recipe
    from pipeline.config import parse_settings

    args = parse(list(arguments))
    recipe(args.recipe or ("celeba_beam" if args.celeba else "faces_quick"), parse_settings(args.settings))
    if args.workers < 1:
        raise SubmissionError(f"--workers {args.workers}: at least 1")


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status, see above."""
    parser = argparse.ArgumentParser(prog="python -m jobs.submit", description=__doc__)
    parser.add_argument("--address", default=os.environ.get("RAY_ADDRESS"), help="http://HOST:8265 (RAY_ADDRESS)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--follow", metavar="ID", help="show a job's log from its beginning and follow it to its end")
    what.add_argument("--list", action="store_true", help="the cluster's jobs")
    what.add_argument("--stop", metavar="ID", help="ask a job to write a checkpoint and end")
    parser.add_argument("--id", help="name of the job (default: the run's name)")
    parser.add_argument("--env", action="append", default=[], metavar="NAME", help="pass this variable on, too")
    parser.add_argument("--no-follow", action="store_true", help="send the job and end (exit status 75)")
    parser.add_argument(
        "--folder", type=Path, default=project_root(), help="whose code is sent (default: this project)"
    )
    parser.add_argument(
        "command", nargs="*", metavar="MODULE ARGS", help="after `--`: jobs.celeba_train --workers 8 ..."
    )
    args = parser.parse_args(argv)
    if not args.command and not (args.follow or args.list or args.stop):
        parser.error("give `-- MODULE ARGS...`, --follow ID, --list or --stop ID")
    try:
        if not args.address:
            raise AddressError("no cluster given: set RAY_ADDRESS=http://HOST:8265, or give --address")
        os.environ["RAY_ADDRESS"] = args.address  # Ray prefers the variable to what it is given
        os.environ.pop("RAY_API_SERVER_ADDRESS", None)
        module, arguments = "", []
        if args.command:
            module, arguments = args.command[0], complete(args.command[0], args.command[1:])
            name = args.id or run_name(module, arguments)
            check_command(module, arguments)
        client = connect(args.address)
        from jobs.follow import Follower, job_info

        if args.list:
            print(as_table(client.list_jobs()))
            return 0
        if args.stop:
            info = job_info(client, args.stop)
            if info.status.is_terminal():
                print(f"job {args.stop} has ended already: {info.status.value}")
                return 0
            client.stop_job(args.stop)
            print(f"asked job {args.stop} to stop; see its end with --follow {args.stop}")
            return 0
        job = args.follow or submit(client, name, module, arguments, args.folder.resolve(), args.env)
        if args.no_follow:
            print(f"see it with --follow {job}")
            return DETACHED
        return follow(Follower(client, job, show), args.address, ask_to_stop)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted before the job was followed; --list shows whether it is there", file=sys.stderr)
        return DETACHED


def show(text: str) -> None:
    """Write a piece of the log at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
