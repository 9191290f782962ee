#!/usr/bin/env bash
# A Slurm cluster of virtual nodes on this machine, for the tests beside it.
#
#   local-slurm.sh install   install Slurm (Debian, Ubuntu; root)
#   local-slurm.sh start     start munged, slurmctld and one slurmd for each node; nothing if they run
#   local-slurm.sh stop      cancel every job and stop the daemons that start began, and no others
#   local-slurm.sh status    say what runs; exit code 0 if all of it does
#   local-slurm.sh notice on|off
#                            tell jobs of their preemption by the signal they asked for, or not (the default)
#   local-slurm.sh node NAME kill|start
#                            kill all that runs on a node as a power cut does, or bring the node back
#
# LOCAL_SLURM_HOSTS=PREFIX puts the nodes onto hosts of their own, of galampi.bench.hosts: node n1 onto PREFIX1 and on, and
# what steers them onto the last, from which it is to be started and used. LOCAL_SLURM_NODES is how many there are [8].
# LOCAL_SLURM_DIR holds all it writes [/tmp/galampi-slurm]; LOCAL_SLURM_PORT is the first of its ports [17300].
# Use the cluster with SLURM_CONF=$LOCAL_SLURM_DIR/slurm.conf. Partitions: main; low, whose jobs high preempts.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin"

here=$(dirname -- "$(realpath -- "$0")")
root=$(realpath -m -- "${LOCAL_SLURM_DIR:-/tmp/galampi-slurm}")
port=${LOCAL_SLURM_PORT:-17300}
nodes=${LOCAL_SLURM_NODES:-8}
hosts=${LOCAL_SLURM_HOSTS:-}
cpus=8 # a node; they need not exist
export SLURM_CONF=$root/slurm.conf

fail() {
    echo "local-slurm: $*" >&2
    exit 1
}

# pid of the daemon with this name, if it is alive and is ours: its command line names our folder.
pid_of() {
    local pid
    pid=$(cat "$root/run/$1.pid" 2>/dev/null) && [[ -r /proc/$pid/cmdline ]] &&
        tr '\0' ' ' <"/proc/$pid/cmdline" | grep -qF "$root/" && echo "$pid"
}

daemons() {
    local i
    echo slurmctld
    for ((i = 1; i <= nodes; i++)); do echo "slurmd.n$i"; done
    echo munged
}

configure() {
    local host gres="" address=127.0.0.1 own_address="NodeHostname=localhost NodeAddr=127.0.0.1"
    local communication="CommunicationParameters=NoCtldInAddrAny,NoInAddrAny"
    local silence=15
    host=$(hostname -s)
    if [[ -n $hosts ]]; then
        address=10.77.0.$((nodes + 1))
        own_address="NodeHostname=${hosts}[1-$nodes] NodeAddr=10.77.0.[1-$nodes]"
        communication=""
        silence=300 # as sites have it: a link may be cut for a while
        # Else slurmd looks for control groups, which a host does not see; nothing here uses them.
        echo CgroupPlugin=cgroup/v1 >"$root/cgroup.conf"
    fi
    rm -f "$root/gres.conf"
    rm -rf "${root:?}/dev" && mkdir "$root/dev"
    printf '#!/bin/bash\nexport LOCAL_SLURM_DIR=%q\nexec bash %q end-job\n' "$root" "$here/local-slurm.sh" >"$root/epilog"
    chmod +x "$root/epilog"
    # A device that slurmd takes for a GPU: it wants a device file, and /dev/null's numbers make one.
    if mknod "$root/dev/nvidia0" c 1 3 2>/dev/null; then
        echo "Name=gpu File=$root/dev/nvidia0" >"$root/gres.conf"
        gres="Gres=gpu:1"
    fi
    cat >"$SLURM_CONF" <<CONF
ClusterName=galampi
# MPICH under srun names its shared memory after the job: jobs of another start must not have had the same numbers.
FirstJobId=$((RANDOM + 100))
SlurmctldHost=$host($address)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
$communication
# A requeued job waits for cred_expire seconds, by default 120, before it may start again.
AuthInfo=socket=$root/munge/socket,cred_expire=5
StateSaveLocation=$root/state
SlurmdSpoolDir=$root/spool/%n
TmpFS=$root/tmp/%n
SlurmctldPidFile=$root/run/slurmctld.pid
SlurmdPidFile=$root/run/slurmd.%n.pid
SlurmctldLogFile=$root/log/slurmctld.log
SlurmdLogFile=$root/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
# It follows parents and children, and loses who begins a session of his own, as what Hydra's mpirun starts does. Sites
# track by control groups, which lose nobody; here an epilog takes their place.
Epilog=$root/epilog
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=$silence
InactiveLimit=0
KillWait=15
JobRequeue=1
OverTimeLimit=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
${gres:+GresTypes=gpu}
NodeName=n[1-$nodes] $own_address Port=[$((port + 1))-$((port + nodes))] CPUs=$cpus RealMemory=4000 $gres
PartitionName=main Nodes=ALL Default=YES MaxTime=1-0 DefaultTime=10 PriorityTier=5 PreemptMode=OFF
PartitionName=low Nodes=ALL MaxTime=1-0 DefaultTime=10 PriorityTier=1 GraceTime=12
PartitionName=high Nodes=ALL MaxTime=1-0 DefaultTime=10 PriorityTier=9 PreemptMode=OFF
CONF
}

start_node() {
    mkdir -p "$root/spool/$1" "$root/tmp/$1"
    chmod 1777 "$root/tmp/$1"
    local -a where=()
    if [[ -n $hosts ]]; then
        where=(ip netns exec "$hosts${1#n}" unshare --uts
            sh -c "hostname $hosts${1#n} && exec \"\$@\"" --)
    fi
    # Each node sees one core of those that this may use, in turn, as if it had no other.
    local -a cores
    mapfile -t cores < <(python3 -c 'import os; print(*sorted(os.sched_getaffinity(0)), sep="\n")')
    "${where[@]}" taskset -c "${cores[${1#n} % ${#cores[@]}]}" slurmd -N "$1" -f "$SLURM_CONF" || fail "slurmd of $1 did not start: $(tail -n 3 "$root/log/slurmd.$1.log")"
}

start() {
    local name i address
    [[ $(id -u) == 0 ]] || fail "needs root"
    for name in munged slurmctld slurmd; do
        command -v "$name" >/dev/null || fail "$name is missing; run: $0 install"
    done
    if status >/dev/null 2>&1; then return 0; fi
    stop
    address=$(getent ahostsv4 "$(hostname -s)" | awk 'NR == 1 { print $1 }') || true
    [[ $address == 127.* || -n $hosts ]] || fail "add '127.0.0.1 $(hostname -s)' to /etc/hosts: this host's name is not a loopback address"
    rm -rf "${root:?}/state" "$root/spool"
    mkdir -p "$root"/{run,log,munge,state,spool,tmp}
    chmod 755 "$root" "$root"/{run,log,munge}
    [[ -s $root/munge/key ]] || (umask 077 && head -c 64 /dev/urandom >"$root/munge/key")
    configure
    munged --force --socket="$root/munge/socket" --key-file="$root/munge/key" --pid-file="$root/run/munged.pid" \
        --log-file="$root/log/munged.log" --seed-file="$root/munge/seed" --num-threads=2
    slurmctld -c -i -f "$SLURM_CONF"
    for ((i = 1; i <= nodes; i++)); do start_node "n$i"; done
    for ((i = 0; i < 150; i++)); do
        if [[ $(sinfo -h -N -p main -o %t 2>/dev/null | grep -cx idle) == "$nodes" ]]; then return 0; fi
        sleep 0.2
    done
    fail "the nodes did not come up in 30 s; see $root/log"
}

# All that descends from a process.
processes_below() {
    local child
    for child in $(pgrep -P "$1" || true); do
        processes_below "$child"
        echo "$child"
    done
}

# What jobs have started here and is marked with a variable, whoever its parent is now; not the epilog itself.
processes_with() {
    local environment
    for environment in $(grep -slzx "$1" /proc/[0-9]*/environ || true); do
        if grep -qszx "SLURM_CONF=$SLURM_CONF" "$environment" && grep -qsz '^SLURM_JOB_ID=' "$environment" &&
            ! grep -qsz '^SLURM_SCRIPT_CONTEXT=' "$environment"; then
            environment=${environment#/proc/}
            echo "${environment%/environ}"
        fi
    done
}

end_job() {
    local process
    for process in $(processes_with "SLURM_JOB_ID=$SLURM_JOB_ID"); do
        if grep -qszx "SLURMD_NODENAME=$SLURMD_NODENAME" "/proc/$process/environ"; then kill -KILL "$process" 2>/dev/null || true; fi
    done
}

# Step daemons leave their slurmd for init; each holds files open below its node's folder.
step_daemons() {
    local process
    for process in $(pgrep -x slurmstepd || true); do
        if find "/proc/$process/fd" "/proc/$process/cwd" -lname "$root/spool/${1:-*}/*" 2>/dev/null | grep -q . ||
            find "/proc/$process/fd" -lname "$root/log/slurmd.${1:-*}.log" 2>/dev/null | grep -q .; then
            echo "$process"
        fi
    done
}

kill_node() {
    local process daemon
    local -a doomed
    daemon=$(pid_of "slurmd.$1") || fail "node $1 is not up"
    kill -KILL "$daemon"
    # Once more for what was started meanwhile.
    while
        doomed=()
        for process in $(step_daemons "$1"); do
            mapfile -t -O "${#doomed[@]}" doomed < <(processes_below "$process")
            doomed+=("$process")
        done
        mapfile -t -O "${#doomed[@]}" doomed < <(processes_with "SLURMD_NODENAME=$1")
        ((${#doomed[@]}))
    do kill -KILL "${doomed[@]}" 2>/dev/null || true; done
}

stop() {
    local name pid i
    local -a ours=()
    if pid_of slurmctld >/dev/null; then
        squeue -h -o %A 2>/dev/null | sort -u | xargs -r scancel --quiet 2>/dev/null || true
        squeue -h -o %A 2>/dev/null | sort -u | xargs -r scancel --quiet --full --signal=KILL 2>/dev/null || true
        for ((i = 0; i < 75; i++)); do
            [[ -n $(squeue -h 2>/dev/null) ]] || break
            sleep 0.2
        done
    fi
    for name in $(daemons); do
        if pid=$(pid_of "$name"); then ours+=("$pid"); fi
    done
    for pid in $(step_daemons) $(processes_with "SLURM_CONF=$SLURM_CONF"); do ours+=("$pid"); done
    if ((${#ours[@]})); then
        kill "${ours[@]}" 2>/dev/null || true
        for ((i = 0; i < 50; i++)); do
            kill -0 "${ours[@]}" 2>/dev/null || break
            sleep 0.1
        done
        kill -KILL "${ours[@]}" 2>/dev/null || true
    fi
    rm -f "$root"/run/*.pid "$root"/munge/socket*
}

status() {
    local name pid all=0
    for name in $(daemons); do
        if pid=$(pid_of "$name"); then echo "$name: $pid"; else
            echo "$name: down"
            all=1
        fi
    done
    return $all
}

case ${1:-} in
install)
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q
    # srun --mpi=pmix opens libpmix.so, by a name that only the package for developers has; no package asks for it.
    apt-get install -q -y --no-install-recommends slurm-wlm munge libpmix-dev
    ;;
start | stop | status) "$1" ;;
end-job) end_job ;; # what the epilog calls
notice)
    sed -i '/^SlurmctldParameters=/d' "$SLURM_CONF"
    if [[ ${2:-} == on ]]; then echo "SlurmctldParameters=preempt_send_user_signal" >>"$SLURM_CONF"; fi
    scontrol reconfigure
    ;;
node)
    case ${3:-} in
    kill) kill_node "$2" ;;
    start) start_node "$2" ;;
    *) fail "node NAME kill, or node NAME start" ;;
    esac
    ;;
*)
    sed -n '2,/^set -e/{s/^# \{0,1\}//p}' "$0"
    exit 2
    ;;
esac
