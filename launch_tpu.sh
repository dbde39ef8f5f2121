#!/usr/bin/env bash
# Starts a training command as many processes, and starts it again until it has finished.
# docs/clusters.md is the guide; `./launch_tpu.sh --help` lists the options.
set -euo pipefail

usage() {
  cat <<'EOF'
[DRY_RUN=1] ./launch_tpu.sh BACKEND [ACTION] [--OPTION VALUE ...] [-- langsamp train ...]

  local  run                 --processes N [--logs DIR]
  tpu    up, create, setup,  --zone Z --accelerator v5e:4x4 [--project P] [--runtime V]
         run, logs, delete   [--spot] [--queued]
  slurm  run                 --nodes N [--gpus_per_node G] [--cpus_per_task C] [--time T]
                             [--partition P] [--account A] [--logs DIR]
  gke    run, logs, delete   --accelerator v5e:4x4 --image I [--namespace S] [--spot]
  all    --name NAME (langsamp)  --max_restarts N, after crashes (100)
         --grace SECONDS, for saving after SIGTERM (120)  --pause SECONDS, before a restart

  ./launch_tpu.sh local --processes 4 -- langsamp train --gin_file F --data store --output run
  ./launch_tpu.sh tpu --zone us-west4-a --accelerator v5e:4x4 --spot -- langsamp train ...
  ./launch_tpu.sh slurm --nodes 2 --gpus_per_node 8 --time 24:00:00 -- langsamp train ...
  DRY_RUN=1 ./launch_tpu.sh gke --accelerator v5e:4x4 --image REGISTRY/langsamp -- langsamp ...
  (The first action is the default. DRY_RUN=1 only prints the commands, the script, the manifest.)
EOF
}

# ---- What the back ends share --------------------------------------------------------------------
say() { printf 'launch_tpu.sh: %s\n' "$*" >&2; }
fail() { say "$*" && exit 2; }
dry() { [[ ${DRY_RUN:-0} != 0 ]]; }
run() { { printf '%q ' "$@" && echo; } >&3 && { dry || "$@"; }; }
submit() { # COMMAND, which reads standard input
  dry && cat && echo "# into: $*" && return
  "$@" || fail "$1 refused it; what it says is above"
}
needs() { # OPTION...
  for option in "$@"; do
    [[ -n ${opt[$option]} ]] || fail "$backend $action needs --$option; see --help"
  done
}
needs_tool() { dry || command -v "$1" >/dev/null || fail "$1 is not on the PATH; $2"; }
make_logs() { dry || mkdir -p "${opt[logs]}" 2>/dev/null || fail "--logs ${opt[logs]}: no folder"; }

nap() { # SECONDS, less where a signal came
  local end=$((SECONDS + $1))
  while ((SECONDS < end)) && [[ -z $pending ]]; do sleep 0.2 || true; done
}

# Starts a command in a process group of its own: a signal reaches it by BACKEND_forward alone.
background() {
  set -m
  "$@" </dev/null &
  set +m
  pids+=("$!")
}

# Waits until all of `pids` have ended, and passes signals on. After a failure the others cannot go
# on: where it was 75 they end by themselves, else a step that waits for a dead peer hears nothing.
# Returns 0, or what the first that failed returned (2 before others of the same moment).
await() {
  local code=0 first ended deadline=999999999 i
  while ((${#pids[@]})); do
    sleep 0.2 || true
    first=$((!code))
    for i in "${!pids[@]}"; do
      kill -0 "${pids[i]}" 2>/dev/null && continue
      wait "${pids[i]}" 2>/dev/null && ended=0 || ended=$?
      unset "pids[i]"
      if ((first && (!code || ended == 2))); then code=$ended; fi
    done
    ((${#pids[@]})) || break
    if [[ -n $pending ]]; then
      stopping=$pending pending='' deadline=$((SECONDS + opt[grace]))
      "${backend}_forward" "$stopping"
    elif ((first && code)); then
      deadline=$((SECONDS + (code == 75 ? opt[grace] : 10)))
      ((code == 75)) || "${backend}_forward" TERM
    fi
    ((SECONDS < deadline)) && continue
    for i in "${pids[@]}"; do kill -KILL -- "-$i" 2>/dev/null || true; done
  done
  return "$code"
}

# Does "$@" again until it ends for good, and returns its last exit code.
supervise() {
  local crashes=0 quick=0 code started
  while :; do
    started=$SECONDS code=0
    "$@" || code=$?
    case $code in 0 | 2 | 130) return "$code" ;; esac
    [[ -z $stopping ]] || return "$code"
    if ((code == 75)); then
      quick=0
      say "stopped before the end; starting again"
    else
      crashes=$((crashes + 1)) quick=$((SECONDS - started < 60 ? quick + 1 : 0))
      if ((quick == 3 || crashes > opt[max_restarts])); then
        say "gave up after crash $crashes, $((SECONDS - started)) s after a start: exit code $code"
        return "$code"
      fi
      say "crashed with exit code $code; restart $crashes of at most ${opt[max_restarts]}"
    fi
    nap "${opt[pause]}"
    case $pending in TERM) return 75 ;; INT) return 130 ;; esac
  done
}

# ---- local: processes on this machine ------------------------------------------------------------
local_run() {
  needs processes && needs_tool "${command[0]}" "it is the command to be run" && make_logs
  supervise local_attempt
}

local_attempt() {
  local port log size i worker followers=() code=0
  port=$((10000 + RANDOM % 20000)) # below those that systems give to connections
  while (exec 4<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done
  for ((i = 0; i < opt[processes]; i++)); do
    worker=(env "JAX_COORDINATOR_ADDRESS=127.0.0.1:$port" "JAX_NUM_PROCESSES=${opt[processes]}"
      "JAX_PROCESS_ID=$i" "${command[@]}")
    dry && run "${worker[@]}" && continue
    log=${opt[logs]}/process-$i.log
    touch "$log" && size=$(wc -c <"$log") || return 2
    background "${worker[@]}" >>"$log" 2>&1
    local_follow "$i" "$!" "$log" "$size" &
    followers+=("$!")
  done
  await || code=$?
  dry || wait "${followers[@]}"
  return "$code"
}

# Shows what a log grows by until its process has ended.
local_follow() { # PROCESS PID LOG BYTES
  trap '' INT TERM # the last words are wanted too
  tail -s 0.2 -c "+$(($4 + 1))" -f --pid="$2" "$3" | while IFS= read -r line || [[ -n $line ]]; do
    printf '[%s] %s\n' "$1" "$line"
  done
}

local_forward() { for pid in "${pids[@]}"; do kill "-$1" -- "-$pid" 2>/dev/null || true; done; }

# ---- tpu: a Cloud TPU slice ----------------------------------------------------------------------
tpu_check() {
  needs zone
  needs_tool gcloud "see https://cloud.google.com/sdk/docs/install"
  place=("--zone=${opt[zone]}" ${opt[project]:+"--project=${opt[project]}"} --quiet)
  resource=${opt[queued]:+queued-resources} resource=${resource:-tpu-vm}
  dry && return
  [[ -n $(gcloud auth list --filter=status:ACTIVE --format='value(account)' 2>/dev/null) ]] ||
    fail "gcloud knows no account: gcloud auth login"
  local project=${opt[project]:-$(gcloud config get-value project 2>/dev/null || true)}
  [[ -n ${project#(unset)} ]] || fail "gcloud knows no project: give --project"
}
tpu_gcloud() { run gcloud compute tpus "$@" "${place[@]}"; }
tpu_ssh() { tpu_gcloud tpu-vm ssh "${opt[name]}" --worker="$1" --command="$2"; }
tpu_create() {
  read_accelerator
  tpu_gcloud "$resource" create "${opt[name]}" "--accelerator-type=$type" ${opt[spot]:+--spot} \
    "--${opt[queued]:+runtime-}version=${opt[runtime]:-$runtime}" \
    ${opt[queued]:+"--node-id=${opt[name]}"}
}
tpu_delete() { tpu_gcloud "$resource" delete "${opt[name]}" ${opt[queued]:+--force}; }
tpu_state() { # of the slice, or of the request for it
  tpu_gcloud "$resource" describe "${opt[name]}" --format="value(state${opt[queued]:+.state})"
}

# Copies the code to all workers and installs it. The images' own Python is too old; uv brings one.
tpu_setup() {
  local files=(setup.py pyproject.toml requirements langsamp_jax data_pipelines gin_configs)
  tpu_ssh all "$(tpu_stop)
mkdir -p langsamp-jax && cd langsamp-jax && rm -rf ${files[*]}" &&
    tpu_gcloud tpu-vm scp --recurse "${files[@]/#/$here/}" "${opt[name]}:langsamp-jax" \
      --worker=all &&
    tpu_ssh all "set -e; cd langsamp-jax
python3 -m pip install -q --user uv || python3 -m pip install -q --user --break-system-packages uv
python3 -m uv venv -q --allow-existing --python 3.11 .venv
python3 -m uv pip install -q --python .venv -r requirements/core.txt -e '.[tpu,gcs]'"
}

# What an earlier attempt left behind on a worker saves and ends: it holds the chips.
tpu_stop() {
  echo "grace=${opt[grace]}"
  cat <<'EOF'
if old=$(cat langsamp-jax/logs/pid 2>/dev/null) && kill -TERM -- "-$old" 2>/dev/null; then
  timeout "$grace" tail -f --pid="$old" /dev/null || kill -KILL -- "-$old"
fi
EOF
}

# What a worker does for one attempt, named by a token. Connections break, and gcloud then gives the
# command again: the run goes on without them and is found by its token.
tpu_worker() { # TOKEN
  printf 'token=%q command=(' "$1"
  printf '%q ' "${command[@]}"
  printf ')\nstop() {\n%s\n}\n' "$(tpu_stop)"
  cat <<'EOF'
[ "$(cat langsamp-jax/logs/token 2>/dev/null)" == "$token" ] || stop
mkdir -p langsamp-jax/logs && cd langsamp-jax && export PATH="$PWD/.venv/bin:$PATH"
if [ "$(cat logs/token 2>/dev/null)" != "$token" ]; then
  rm -f logs/status logs/pid
  setsid bash -c 'trap : TERM INT; echo $$ >logs/pid; "$@"; echo $? >logs/status' bash \
    "${command[@]}" >"logs/$token.log" 2>&1 </dev/null &
  echo "$token" >logs/token
fi
until [ -s logs/pid ]; do sleep 0.1; done
tail -s 0.5 -n +1 -f --pid="$(cat logs/pid)" "logs/$token.log"
exit "$(cat logs/status 2>/dev/null || echo 137)"
EOF
}

tpu_run() {
  dry && tpu_ssh all "$(tpu_worker TOKEN)" && return
  attempts=$((attempts + 1))
  background tpu_ssh all "$(tpu_worker "$(date +%Y%m%d-%H%M%S)-$attempts")"
  await
}

tpu_forward() { tpu_ssh all "kill -$1 -- -\$(cat langsamp-jax/logs/pid)" || true; }
tpu_logs() { tpu_ssh 0 "cd langsamp-jax/logs && tail -n 100 -F \$(cat token).log"; }

# Creates the slice, or waits for it, until it is there.
tpu_ensure() {
  dry && tpu_state && tpu_create && return
  local state
  while [[ -z $pending ]]; do
    state=$(tpu_state 2>/dev/null) || state=NONE
    case $state in
      READY | ACTIVE) return 0 ;;
      NONE) tpu_create || return 1 ;;
      PREEMPTED | TERMINATED | STOPPED | SUSPENDED) tpu_delete || return 1 ;;
      FAILED) tpu_delete || true && return 1 ;;
      *) say "${opt[name]} is ${state:-not there yet}" && nap "${opt[pause]}" ;;
    esac
  done
  return 1
}

tpu_attempt() {
  local code=0
  if ! tpu_ensure; then
    ((attempts)) || [[ -n $pending ]] || fail "there is no slice; what gcloud says is above"
    return 75 # it was there before: there will be room again
  fi
  tpu_setup && tpu_run || code=$?
  [[ $code != 0 && $code != 2 && $code != 130 && -z $stopping ]] || return "$code"
  # A spot slice that was told to stop does not come back, whatever its state still says.
  if ((code == 75)) && [[ -n ${opt[spot]} ]]; then tpu_delete || true; fi
  [[ $(tpu_state 2>/dev/null) =~ ^(READY|ACTIVE)$ ]] || code=75 # it was taken away
  return "$code"
}

tpu_up() {
  supervise tpu_attempt
  ! dry || { echo "# after a preemption, and then all of the above again:" && tpu_delete; }
}

# ---- slurm: a cluster of GPU nodes ---------------------------------------------------------------
# JAX gives the tasks of a node its GPUs by their local numbers: a task a GPU, each sees them all.
slurm_run() {
  needs nodes && needs_tool sbatch "it is on the login nodes of a Slurm cluster" && make_logs
  slurm_script | submit sbatch
}

slurm_script() {
  local tasks=${opt[gpus_per_node]:-1}
  printf '#%s\n' '!/usr/bin/env bash' "SBATCH --job-name=${opt[name]}" \
    "SBATCH --ntasks-per-node=$tasks" "SBATCH --signal=TERM@${opt[grace]}" 'SBATCH --requeue' \
    'SBATCH --open-mode=append' "SBATCH --output=${opt[logs]}/%x-%j.log"
  for option in nodes gpus_per_node cpus_per_task time partition account; do
    [[ -z ${opt[$option]} ]] || printf '#SBATCH --%s=%s\n' "${option//_/-}" "${opt[$option]}"
  done
  # The first task that has saved must not cost the others their lives.
  srun=(srun "--ntasks=$((tasks * opt[nodes]))" "--ntasks-per-node=$tasks" --label
    --kill-on-bad-exit=0 "--wait=${opt[grace]}" ${opt[gpus_per_node]:+--gpu-bind=none}
    ${opt[cpus_per_task]:+"--cpus-per-task=${opt[cpus_per_task]}"})
  declare -p opt srun command
  printf '%s\n' "backend=slurm pids=() pending='' stopping=''" "trap 'pending=TERM' TERM"
  declare -f say nap background await supervise slurm_forward slurm_attempt
  echo "supervise slurm_attempt"
}

# In the job, for a signal to the batch script itself. srun would not pass it on but kill the tasks.
slurm_forward() { scancel "--signal=$1" "$SLURM_JOB_ID" || true; }

slurm_attempt() {
  local code=0
  background "${srun[@]}" "${command[@]}"
  await || code=$?
  if ((code == 75)); then # not after scancel, nor where Slurm requeues by itself
    [[ $(squeue -h -j "$SLURM_JOB_ID" -o %T) != RUNNING ]] || scontrol requeue "$SLURM_JOB_ID"
    exit 75
  fi
  return "$code"
}

# ---- gke: a JobSet on Kubernetes -----------------------------------------------------------------
gke_check() {
  needs_tool kubectl "see https://kubernetes.io/docs/tasks/tools"
  kubectl=(kubectl ${opt[namespace]:+"--namespace=${opt[namespace]}"})
  dry && return
  local jobsets
  jobsets=$(kubectl api-resources --api-group=jobset.x-k8s.io --output=name 2>/dev/null) ||
    fail "kubectl reaches no cluster: gcloud container clusters get-credentials CLUSTER"
  [[ -n $jobsets ]] || fail "the cluster has no JobSet; see https://jobset.sigs.k8s.io"
}

gke_run() {
  needs image && read_accelerator
  local per_host=$((chips < 4 ? chips : 4)) spot='cloud.google.com/gke-spot: "true"' words
  ((chips % per_host == 0)) || fail "--accelerator ${opt[accelerator]}: a host has four chips"
  words=$(for word in "${command[@]}"; do gke_string "$word" && printf ', '; done)
  submit "${kubectl[@]}" apply --filename=- <<EOF
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: ${opt[name]}
  annotations: {alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool}
spec:
  failurePolicy:
    maxRestarts: ${opt[max_restarts]}
    rules: [{action: FailJobSet, onJobFailureReasons: [PodFailurePolicy]}]
  replicatedJobs:
    - name: slice
      template:
        spec:
          parallelism: $((chips / per_host))
          completions: $((chips / per_host))
          completionMode: Indexed
          backoffLimit: 0
          podFailurePolicy:  # after all other exit codes everything starts again
            rules: [{action: FailJob, onExitCodes: {operator: In, values: [2, 130]}}]
          template:
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: ${opt[grace]}
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $gke_type
                cloud.google.com/gke-tpu-topology: $topology
                ${opt[spot]:+$spot}
              containers:
                - name: train
                  image: $(gke_string "${opt[image]}")
                  command: [${words%, }]
                  resources: {limits: {google.com/tpu: $per_host}}
EOF
}

gke_string() {
  local text=${1//\\/\\\\}
  text=${text//\"/\\\"} text=${text//$'\t'/\\t} && printf '"%s"' "${text//$'\n'/\\n}"
}
gke_logs() {
  run "${kubectl[@]}" logs --selector="jobset.sigs.k8s.io/jobset-name=${opt[name]}" \
    --follow --prefix --tail=-1 --max-log-requests=1024
}
gke_delete() { run "${kubectl[@]}" delete jobset "${opt[name]}"; }

# ---- The command line ----------------------------------------------------------------------------
# Reads v5e:4x4: its `topology` and `chips`, and what Cloud TPU, its runtimes and GKE call it.
read_accelerator() {
  needs accelerator
  local cores=1
  topology=${opt[accelerator]#*:} chips=1
  [[ $topology =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] || topology=''
  for side in ${topology//x/ }; do chips=$((chips * side)); done
  case ${topology:+${opt[accelerator]%%:*}} in
    v4) type=v4 runtime=tpu-ubuntu2204-base gke_type=tpu-v4-podslice cores=2 ;;
    v5e) type=v5litepod runtime=v2-alpha-tpuv5-lite gke_type=tpu-v5-lite-podslice ;;
    v5p) type=v5p runtime=v2-alpha-tpuv5 gke_type=tpu-v5p-slice cores=2 ;;
    v6e) type=v6e runtime=v2-alpha-tpuv6e gke_type=tpu-v6e-slice ;;
    *) fail "--accelerator ${opt[accelerator]}: v4, v5e, v5p or v6e and a topology, as v5e:4x4" ;;
  esac
  type+=-$((chips * cores))
}

main() {
  local actions=run least flags='' known='name max_restarts grace pause'
  opt=([name]=langsamp [max_restarts]=100 [grace]=120 [pause]=5 [logs]=logs)
  here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
  backend=${1:-nothing}
  case $backend in
    local) known+=' processes logs' ;;
    tpu) actions='up create setup run logs delete' known+=' zone project accelerator runtime' \
      flags='spot queued' opt[pause]=30 ;;
    slurm) known+=' nodes gpus_per_node cpus_per_task time partition account logs' ;;
    gke) actions='run logs delete' known+=' accelerator image namespace' flags='spot' ;;
    -h | --help) usage && exit ;;
    *) fail "$backend is no back end; known are local, tpu, slurm and gke; see --help" ;;
  esac
  shift
  action=${actions%% *}
  if (($#)) && [[ $1 != -* ]]; then
    [[ " $actions " == *" $1 "* ]] || fail "$backend has no action $1, but ${actions// /, }"
    action=$1 && shift
  fi
  for option in $known $flags; do opt[$option]=${opt[$option]:-}; done
  while (($#)); do
    [[ $1 != -- ]] || { shift && command=("$@") && break; }
    option=${1#--}
    [[ $1 == --* && " $known $flags " == *" $option "* ]] ||
      fail "$backend does not know $1, but --${known// /, --}${flags:+, --${flags// /, --}}"
    [[ " $flags " != *" $option "* ]] || set -- "$1" yes "${@:2}"
    [[ -n ${2:-} && $2 != -- ]] || fail "$1 needs a value"
    opt[$option]=$2 && shift 2
  done
  for option in processes nodes gpus_per_node cpus_per_task max_restarts grace pause; do
    [[ $option =~ ^(max|grace|pause) ]] && least=0 || least=1
    [[ ${opt[$option]:-1} =~ ^(0|[1-9][0-9]{0,8})$ && ${opt[$option]:-1} -ge $least ]] ||
      fail "--$option ${opt[$option]}: a whole number, at least $least, is needed"
  done
  [[ ${opt[name]} =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
    fail "--name ${opt[name]}: lower-case letters, digits and hyphens, at most 40"
  case $action in run | up) ((${#command[@]})) || fail "no command; it comes behind --" ;; esac
  case $backend in tpu | gke) "${backend}_check" ;; esac
  trap 'pending=INT' INT
  trap 'pending=TERM' TERM
  "${backend}_$action"
}

declare -A opt
command=() pids=() pending='' stopping='' attempts=0
if dry; then exec 3>&1; else exec 3>&2; fi
main "$@"
