#!/usr/bin/env bash
# The deployment on one machine, for real: two Ray nodes in network namespaces of their own, an MLflow server with login on
# PostgreSQL and an S3 store (moto's server), and a single-node Slurm. Jobs train stand-in faces on them, register the
# model and look it up; meanwhile the network is cut, a node is killed, and the database is restarted. Ends with a table
# and the status 0 if every check passed, and takes down all that it started.
#
#   cluster/rehearse.sh [PART ...]     # parts: ray slurm; default both; as root, about 15 minutes on two cores
#
# Needs Debian's iproute2, postgresql, slurmctld, slurmd, slurm-client and munge, and .venv with `pip install -e
# ".[cpu,server,rehearsal]"` (PY=python for another). All files are below a temporary folder, REHEARSAL=folder to choose
# it; KEEP=1 leaves it. Nothing listens outside loopback and the bridge between the namespaces.
# shellcheck disable=SC2329 # many functions are called by name, through `check` and `until_true`
set -euo pipefail

project=$(cd "$(dirname "$0")/.." && pwd)
python=${PY:-$project/.venv/bin/python}
parts=${*:-ray slurm}
bridge=beam-rh0 net=10.91.7 # host .1, nodes .2 and .3
port_sql=25432 port_s3=25070 port_mlflow=25500 port_ray=26379
declare -a started=() checks=()
failed=0

say() { printf '%s  %s\n' "$(date +%T)" "$*"; }
check() { # NAME COMMAND...: its result goes into the table
  local name=$1 status=0
  shift
  "$@" || status=$?
  if [ "$status" = 0 ]; then checks+=("ok      $name"); else checks+=("FAILED  $name"); failed=1; fi
  say "${checks[-1]}"
}
until_true() { # SECONDS COMMAND...
  local end=$((SECONDS + $1))
  shift
  until "$@"; do
    [ "$SECONDS" -lt "$end" ] || return 1
    sleep 0.5
  done
}
start() { # NAME COMMAND...: a service in a process group of its own, its words in logs/NAME
  local name=$1
  shift
  setsid "$@" >"$work/logs/$name" 2>&1 &
  started+=("$!")
  eval "pid_$name=$!"
}
stop_group() { # PID SIGNAL
  kill "-$2" -- "-$1" 2>/dev/null || true
}

# --- what is needed ------------------------------------------------------------------------------------------------------

[ "$(id -u)" = 0 ] || { echo "run this as root: it makes network namespaces" >&2; exit 2; }
[ -x "$python" ] || { echo "there is no $python: make setup, or set PY" >&2; exit 2; }
PATH=$(dirname "$python"):/usr/sbin:/sbin:$PATH
sql_bin=$(find /usr/lib/postgresql -name initdb -printf '%h\n' 2>/dev/null | sort -V | tail -n 1)
[ -n "$sql_bin" ] || { echo "PostgreSQL is missing: apt-get install postgresql" >&2; exit 2; }
needed=(ip setsid runuser moto_server mlflow ray)
case " $parts " in *" slurm "*) needed+=(slurmctld slurmd sbatch munged) ;; esac
for tool in "${needed[@]}"; do
  command -v "$tool" >/dev/null || { echo "$tool is missing: see the head of $0" >&2; exit 2; }
done
if ip link show "$bridge" >/dev/null 2>&1; then
  echo "there is a network $bridge: another rehearsal runs, or was killed (ip link del $bridge; ip netns del beam-a; ip netns del beam-b)" >&2
  exit 2
fi

work=${REHEARSAL:-$(mktemp -d /tmp/beam-rh.XXXXXX)} # short: sockets below it
mkdir -p "$work/logs" "$work/s"
chmod 755 "$work" # the database's user looks into it

no_job() { [ -z "$(SLURM_CONF=$work/slurm/slurm.conf timeout 5 squeue -h 2>/dev/null)" ]; }
tear_down() {
  trap - EXIT
  say "taking everything down"
  local pid
  if [ -e "$work/slurm/slurm.conf" ]; then # this Slurm alone; the steps of a job are in sessions of their own
    SLURM_CONF=$work/slurm/slurm.conf scancel --full --signal=KILL --user=root 2>/dev/null || true
    until_true 30 no_job || true
  fi
  for pid in "${started[@]}"; do stop_group "$pid" TERM; done
  [ ! -e "$work/pg/postmaster.pid" ] || runuser -u postgres -- "$sql_bin/pg_ctl" -D "$work/pg" -m immediate stop >/dev/null || true
  sleep 2
  for pid in "${started[@]}"; do stop_group "$pid" KILL; done
  local name
  for name in beam-a beam-b; do
    # shellcheck disable=SC2046 # one number a word
    kill -KILL $(ip netns pids "$name" 2>/dev/null) 2>/dev/null || true
    ip netns del "$name" 2>/dev/null || true
  done
  ip link del "$bridge" 2>/dev/null || true
  [ ! -e "$work/munge.pid" ] || kill "$(cat "$work/munge.pid")" 2>/dev/null || true
  wait 2>/dev/null || true
  if [ -n "${KEEP:-}" ] || [ "$failed" != 0 ]; then say "files: $work"; else rm -rf -- "$work"; fi
  if [ "${#checks[@]}" -gt 0 ]; then printf '%s\n' "${checks[@]}"; fi
}
trap tear_down EXIT
trap 'failed=1; exit 130' INT TERM

secret() { "$python" -c 'import secrets; print(secrets.token_hex(24), end="")'; }
umask 077
secret >"$work/ray_token"
sql_password=$(secret) admin_password=$(secret) flask_key=$(secret) s3_key=$(secret)
umask 022
export OMP_NUM_THREADS=1 RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$work/ray_token
export MLFLOW_TRACKING_USERNAME=admin MLFLOW_TRACKING_PASSWORD=$admin_password
export MLFLOW_TRACKING_URI=http://$net.1:$port_mlflow

# --- network, database, object store, MLflow ------------------------------------------------------------------------------

say "two namespaces on a bridge, $net.2 and $net.3"
ip link add "$bridge" type bridge
ip addr add "$net.1/24" dev "$bridge"
ip link set "$bridge" up
number=2
for name in beam-a beam-b; do
  ip netns add "$name"
  ip link add "$name" type veth peer name eth0 netns "$name"
  ip link set "$name" master "$bridge" up
  ip -n "$name" addr add "$net.$number/24" dev eth0
  ip -n "$name" link set lo up
  ip -n "$name" link set eth0 up
  number=$((number + 1))
done

sql() { runuser -u postgres -- "$sql_bin/pg_ctl" -D "$work/pg" -l "$work/pg/log" -w "$@" >/dev/null; }
say "PostgreSQL $("$sql_bin/postgres" --version | grep -o '[0-9.]*' | head -n 1) and an S3 store"
install -d -o postgres -m 700 "$work/pg"
printf %s "$sql_password" >"$work/pg_password"
chown postgres "$work/pg_password"
runuser -u postgres -- "$sql_bin/initdb" -D "$work/pg" -U mlflow --auth=scram-sha-256 --pwfile="$work/pg_password" >"$work/logs/initdb"
rm "$work/pg_password"
printf "listen_addresses = '127.0.0.1'\nport = %s\nunix_socket_directories = ''\n" "$port_sql" >>"$work/pg/postgresql.conf"
sql start
export PGPASSWORD=$sql_password
"$sql_bin/createdb" -h 127.0.0.1 -p "$port_sql" -U mlflow mlflow

export AWS_ACCESS_KEY_ID=mlflow AWS_SECRET_ACCESS_KEY=$s3_key AWS_DEFAULT_REGION=us-east-1
start s3 moto_server -H 127.0.0.1 -p "$port_s3"
make_bucket() {
  "$python" -c "import boto3; boto3.client('s3', endpoint_url='http://127.0.0.1:$port_s3').create_bucket(Bucket='mlflow')" 2>/dev/null
}
until_true 60 make_bucket || { echo "the S3 store did not start: $work/logs/s3" >&2; exit 1; }

sed "s#@database:5432#@127.0.0.1:$port_sql#" "$project/cluster/mlflow/auth.ini" >"$work/auth.ini"
start_mlflow() {
  start mlflow env MLFLOW_AUTH_CONFIG_PATH="$work/auth.ini" MLFLOW_AUTH_ADMIN_USERNAME=admin \
    MLFLOW_AUTH_ADMIN_PASSWORD="$admin_password" MLFLOW_FLASK_SERVER_SECRET_KEY="$flask_key" \
    MLFLOW_S3_ENDPOINT_URL="http://127.0.0.1:$port_s3" \
    mlflow server --app-name=basic-auth --host="$net.1" --port="$port_mlflow" --workers=2 \
    --backend-store-uri="postgresql+psycopg2://mlflow@127.0.0.1:$port_sql/mlflow" --serve-artifacts \
    --artifacts-destination=s3://mlflow/artifacts --allowed-hosts="$net.1,$net.1:*"
}
say "MLflow on them"
start_mlflow
answers() { "$python" -c "import urllib.request as u; u.urlopen('http://$net.1:$port_mlflow/health', timeout=5)" 2>/dev/null; }
until_true 180 answers || { tail -n 20 "$work/logs/mlflow" >&2; exit 1; }
unset PGPASSWORD AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_DEFAULT_REGION # a job never sees them
refused() { ! MLFLOW_TRACKING_PASSWORD=wrong "$python" -c "import mlflow; mlflow.MlflowClient().search_experiments()" 2>/dev/null; }
check "MLflow refuses a wrong password" refused

look_up() { # MODEL: by name and alias, in a process of its own
  "$python" - "$1" <<'LOOK'
import sys
import mlflow
images = mlflow.pyfunc.load_model(f"models:/{sys.argv[1]}@champion").predict(None, params={"n_samples": 2})
assert images.shape[0] == 2 and images.dtype == "uint8", (images.shape, images.dtype)
LOOK
}
same_bits() { # FOLDER FOLDER: the last checkpoints of two runs
  "$python" - "$1" "$2" <<'SAME'
import sys
from pathlib import Path
import torch
from safetensors.torch import load_file
def tensors(run):
    last = max(p for p in (Path(run) / "checkpoints").iterdir() if p.is_dir())
    return {f"{file.name}:{name}": value for file in last.glob("*.safetensors") for name, value in load_file(file).items()}
a, b = map(tensors, sys.argv[1:])
assert a.keys() == b.keys() and a, (sorted(a), sorted(b))
assert all(torch.equal(a[name], b[name]) for name in a), [name for name in a if not torch.equal(a[name], b[name])]
print(f"{len(a)} tensors equal")
SAME
}
history() { # RUN FOLDER: what MLflow has of the run is what the run wrote, in order, each once
  "$python" - "$1" <<'HISTORY'
import json, sys
from pathlib import Path
import mlflow
folder = Path(sys.argv[1])
run = (folder / "mlflow_run_id").read_text().strip()
rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
written = {}
for row in rows:
    for key, value in row.items():
        if key != "step" and isinstance(value, (int, float)):
            written.setdefault(key, {})[row["step"]] = value
client, checked = mlflow.MlflowClient(), 0
for key, values in written.items():
    found = [(m.step, m.value) for m in client.get_metric_history(run, key)]
    if found:
        assert [step for step, _ in found] == sorted(values), (key, found)
        # a step that was made again took another time; MLflow keeps the first
        assert key == "updates_per_second" or all(value == values[step] for step, value in found), key
        checked += 1
assert checked, "no metric of the run is known to MLflow"
print(f"{checked} histories complete, in order, each step once")
HISTORY
}

# --- Ray on two nodes -----------------------------------------------------------------------------------------------------

small=(--quick --set schedules.likelihood.updates=400 --set schedules.adversarial.updates=200 --set checkpoint.every_updates=50)
job() { "$python" -W ignore -m jobs.celeba_train --runs "$work/runs" --cache "$work/cache" "$@"; }
at_update() { # NUMBER FOLDER: the run has come that far
  local step
  step=$(tail -n 1 "$2/metrics.jsonl" 2>/dev/null | grep -o '"step": [0-9]*' | grep -o '[0-9]*') || return 1
  [ "$step" -ge "$1" ]
}
dead_or() { ! kill -0 "$driver" 2>/dev/null || "$@"; } # do not wait for what cannot come
updates() { tail -n 1 "$work/runs/two-nodes/beam/metrics.jsonl" 2>/dev/null | grep -o '"step": [0-9]*' || echo none; }

rehearse_ray() {
  say "Ray: a head in beam-a and a node in beam-b, one CPU each, each started again when it ends, as a cluster's supervisor does"
  local loop='while :; do "$@"; sleep 2; done'
  start ray_a ip netns exec beam-a ray start --head --block --node-ip-address="$net.2" --port="$port_ray" --num-cpus=1 \
    --object-store-memory=200000000 --temp-dir="$work/s" --dashboard-host=127.0.0.1
  # shellcheck disable=SC2016 # the loop's own "$@"
  start ray_b bash -c "$loop" loop ip netns exec beam-b ray start --block --address="$net.2:$port_ray" \
    --node-ip-address="$net.3" --num-cpus=1 --object-store-memory=200000000
  nodes_alive() { # COUNT
    RAY_ADDRESS=$net.2:$port_ray ip netns exec beam-a "$python" - "$1" <<'NODES' 2>/dev/null
import sys
import ray
ray.init(log_to_driver=False, logging_level="ERROR")
sys.exit(sum(node["Alive"] for node in ray.nodes()) != int(sys.argv[1]))
NODES
  }
  check "two Ray nodes with addresses of their own" until_true 120 nodes_alive 2

  say "an undisturbed run in one process, without Ray: what the bits have to be"
  undisturbed() { job "${small[@]}" --local --name undisturbed >"$work/logs/undisturbed" 2>&1; }
  check "undisturbed run" undisturbed
  say "the same run on both nodes"
  local folder=$work/runs/two-nodes
  RAY_ADDRESS=$net.2:$port_ray setsid ip netns exec beam-a "$python" -W ignore -m jobs.celeba_train --runs "$work/runs" \
    --cache "$work/cache" "${small[@]}" --workers 2 --name two-nodes >"$work/logs/two-nodes" 2>&1 &
  driver=$!
  started+=("$driver")
  until_true 300 dead_or at_update 100 "$folder/beam" || true
  say "update $(updates): SIGKILL to all of node beam-b"
  # shellcheck disable=SC2046 # one number a word
  kill -KILL $(ip netns pids beam-b)
  until_true 300 dead_or at_update 250 "$folder/beam" || true
  say "update $(updates): node beam-b is cut off for 60 s"
  ip link set beam-b down
  sleep 60
  ip link set beam-b up
  until_true 400 dead_or at_update 450 "$folder/beam" || true
  say "update $(updates): PostgreSQL is stopped for 20 s"
  sql -m fast stop
  sleep 20
  sql start
  finished() { wait "$driver"; }
  check "the run ended well: a node killed, one cut off for 60 s, the database away for 20 s" finished
  check "its bits are the undisturbed run's" same_bits "$work/runs/undisturbed/beam" "$folder/beam"
  check "its metrics are in MLflow, complete and in order" history "$folder/beam"
  check "its model is found by name and alias and draws" look_up "$(model_of "$folder")"
}
model_of() { "$python" -c "import json, sys; print(json.load(open(sys.argv[1] + '/summary.json'))['model']['name'])" "$1"; }

# --- Slurm ----------------------------------------------------------------------------------------------------------------

rehearse_slurm() {
  local host cpus
  host=$(hostname -s)
  cpus=$(env -u OMP_NUM_THREADS nproc) # nproc takes that variable for the number
  say "Slurm $(slurmd -V | grep -o '[0-9.]*$') with one node, $host"
  umask 077
  secret >"$work/munge.key"
  umask 022
  munged --force --socket="$work/s/munge" --key-file="$work/munge.key" --pid-file="$work/munge.pid" \
    --seed-file="$work/munge.seed" --log-file="$work/logs/munge" --num-threads=2
  mkdir -p "$work/slurm/state" "$work/slurm/spool"
  cat >"$work/slurm/slurm.conf" <<CONF
ClusterName=rehearsal
SlurmctldHost=$host(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket=$work/s/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
SlurmctldPort=26817
SlurmdPort=26818
StateSaveLocation=$work/slurm/state
SlurmdSpoolDir=$work/slurm/spool
SlurmctldPidFile=$work/slurm/slurmctld.pid
SlurmdPidFile=$work/slurm/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SlurmdParameters=config_overrides
ReturnToService=2
MinJobAge=600
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
  export SLURM_CONF=$work/slurm/slurm.conf
  start slurmctld slurmctld -D
  start slurmd slurmd -D
  node_idle() { [ "$(sinfo -h -o %T 2>/dev/null)" = idle ]; }
  check "Slurm's node is idle" until_true 60 node_idle

  local job_id folder=$work/runs/slurm
  mkdir "$work/submitted" # where the batch script is sent from: a project's folder, without writing into this one
  ln -s "$project"/{jobs,pipeline,data_prep,pyproject.toml} "$work/submitted/"
  job_id=$(cd "$work/submitted" && PY=$python sbatch --parsable --cpus-per-task="$cpus" --export=ALL \
    "$project/cluster/slurm/train.sbatch" "${small[@]}" --workers 2 --name slurm --runs "$work/runs" --cache "$work/cache")
  job_state() { scontrol show job "$job_id" | grep -o 'JobState=[A-Z]*' | cut -d= -f2; }
  in_state() { [[ " $1 " == *" $(job_state) "* ]]; }
  job_ended_or() { in_state "COMPLETED FAILED CANCELLED TIMEOUT" || "$@"; }
  until_true 300 job_ended_or at_update 100 "$folder/beam" || true
  say "job $job_id is preempted: SIGTERM to the batch script"
  scancel --batch --signal=TERM "$job_id"
  queued_again() { grep -q 'queued again' "$work/submitted/beam-$job_id.log" && scontrol show job "$job_id" | grep -q 'Restarts=1'; }
  check "a preempted job writes a checkpoint and queues itself again" until_true 180 queued_again
  completed() { until_true 600 in_state "COMPLETED FAILED CANCELLED TIMEOUT" && in_state COMPLETED; }
  check "it goes on and completes" completed
  cp "$work/submitted/beam-$job_id.log" "$work/logs/slurm-job"
  if [ -e "$work/runs/undisturbed/summary.json" ]; then
    check "its bits are the undisturbed run's" same_bits "$work/runs/undisturbed/beam" "$folder/beam"
  fi
  check "its metrics are in MLflow, complete and in order" history "$folder/beam"
  check "its model is found by name and alias and draws" look_up "$(model_of "$folder")"
}

for part in $parts; do
  case $part in
    ray) rehearse_ray ;;
    slurm) rehearse_slurm ;;
    *) echo "there is no part $part: ray, slurm" >&2; exit 2 ;;
  esac
done
tear_down
exit "$failed"
