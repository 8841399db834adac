#!/usr/bin/env bash
# A real SLURM on this machine, for development and CI: slurmctld and two slurmd nodes, loopback only, no systemd.
#
#   scripts/slurm_dev_cluster.sh start      install slurm-wlm and munge if they are missing (apt), start, wait
#   eval "$(scripts/slurm_dev_cluster.sh env)"    what clients need: SLURM_CONF, and sacct on PATH
#   scripts/slurm_dev_cluster.sh status | stop
#
# Needs root and Debian or Ubuntu. All it writes is in $SLURM_TOP (default /tmp/ringexp-slurm).
# NODES (2), CPUS (4 per node, may exceed the real cores) and PORT (16817, the first of the ports) can be set.
set -euo pipefail
top=${SLURM_TOP:-/tmp/ringexp-slurm} nodes=${NODES:-2} cpus=${CPUS:-4} port=${PORT:-16817}
host=$(hostname -s)
export SLURM_CONF=$top/slurm.conf PATH=$PATH:/usr/sbin:/sbin

stop() {
  local file pid
  for file in "$top"/run/slurmd-*.pid "$top"/run/slurmctld.pid "$top"/run/munged.pid; do
    [ -s "$file" ] || continue
    pid=$(cat "$file")
    kill -TERM "$pid" 2>/dev/null || continue
    for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
    kill -KILL "$pid" 2>/dev/null || true
  done
  rm -rf "$top"
}

install_packages() {
  command -v slurmctld >/dev/null && command -v munged >/dev/null && return
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends slurm-wlm munge >/dev/null
}

write_conf() {
  local memory node
  memory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)
  cat >"$SLURM_CONF" <<CONF
ClusterName=ringexp
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$top/run/munge.sock,cred_expire=5
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation=$top/state
SlurmdSpoolDir=$top/spool-%n
SlurmctldPidFile=$top/run/slurmctld.pid
SlurmdPidFile=$top/run/slurmd-%n.pid
SlurmctldLogFile=$top/log/slurmctld.log
SlurmdLogFile=$top/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=10000,sched_interval=1,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=30
MinJobAge=3600
KillWait=5
OverTimeLimit=0
DefMemPerCPU=256
PropagateResourceLimits=NONE
CONF
  for ((node = 0; node < nodes; node++)); do
    echo "NodeName=n$node NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 10 + node)) SocketsPerBoard=1" \
      "CoresPerSocket=$cpus ThreadsPerCore=1 CPUs=$cpus RealMemory=$((memory / nodes))" >>"$SLURM_CONF"
    install -d "$top/spool-n$node"
  done
  echo "PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP" >>"$SLURM_CONF"
}

# Without an accounting daemon `sacct` fails, and submitit, which uses nothing else, would wait forever.
write_sacct() {
  cat >"$top/bin/sacct" <<SACCT
#!/usr/bin/env bash
export SLURM_CONF=$SLURM_CONF
echo 'JobID|State|NodeList'
while [ \$# -gt 0 ]; do
  if [ "\$1" = -j ]; then scontrol -o show job "\$2" 2>/dev/null; shift; fi
  shift
done | sed -nE 's/^JobId=([0-9]+).* JobState=([A-Z_]+).* NodeList=([^ ]*) .*/\1|\2|\3/p'
SACCT
  chmod +x "$top/bin/sacct"
}

start() {
  [ "$(id -u)" = 0 ] || { echo "needs root: slurmd starts jobs as their users" >&2; exit 1; }
  install_packages
  stop
  install -d -m 755 "$top" "$top"/{run,log,state,bin}
  install -d -m 700 "$top/munge"
  mungekey --create --keyfile="$top/munge/munge.key"
  write_conf
  write_sacct
  munged --force --socket="$top/run/munge.sock" --key-file="$top/munge/munge.key" \
    --pid-file="$top/run/munged.pid" --seed-file="$top/munge/seed" --log-file="$top/log/munged.log"
  slurmctld -c -f "$SLURM_CONF"
  for ((node = 0; node < nodes; node++)); do slurmd -N "n$node" -f "$SLURM_CONF"; done
  for _ in $(seq 300); do
    if [ "$(sinfo -h -N -o %T 2>/dev/null | grep -c '^idle$')" = "$nodes" ]; then
      sinfo -N -l
      return
    fi
    sleep 0.1
  done
  echo "SLURM did not come up:" >&2
  sinfo -R >&2 || true
  tail -n 20 "$top"/log/*.log >&2
  exit 1
}

case "${1:-}" in
  start) start ;;
  stop) stop ;;
  status) sinfo -N -l && squeue ;;
  env) printf 'export SLURM_CONF=%q PATH=%q:$PATH\n' "$SLURM_CONF" "$top/bin" ;;
  *) echo "usage: $0 start | stop | status | env" >&2; exit 2 ;;
esac
