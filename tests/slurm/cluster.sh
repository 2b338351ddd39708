#!/bin/bash
# A real SLURM cluster on this machine: node1 and node2, each with a network, a host name, a process tree and a /dev/shm of
# its own, and a login machine beside them. All of it lives in namespaces below one process and ends with that process:
# nothing is left, and several clusters do not meet as long as their folders differ.
#
#   cluster.sh install     the Debian packages that it needs, where they are missing (root)
#   cluster.sh up          starts it and says `ready`; then reads from standard input
#                            kill-node 2 | start-node 2     as if the machine lost power, and came back
#                          and ends where that ends (Ctrl-D)
#   cluster.sh in WORDS    runs a command on the login machine, from another terminal: cluster.sh in srun -N2 hostname
#
# BASE=/tmp/bgetrain-slurm: its folder, for configuration and logs.  NODES=2  CPUS=8  GPUS=2: of each node, none of them real.
set -euo pipefail
export BASE=${BASE:-/tmp/bgetrain-slurm} NODES=${NODES:-2} CPUS=${CPUS:-8} GPUS=${GPUS:-2}
export SLURM_CONF=$BASE/slurm.conf PATH=$PATH:/usr/sbin:/sbin
SUBNET=10.9.8 LOGIN=10.9.8.1
PACKAGES="slurmctld slurmd slurm-client munge iproute2 util-linux"
SELF=$(realpath "$0")

fail() { echo "cluster.sh: $*" >&2; exit 2; }

configure() {
  mkdir -p "$BASE"/{run,log,state,dev}
  chmod 755 "$BASE" "$BASE"/*/
  rm -rf "$BASE"/run/* "$BASE"/log/* "$BASE"/state/*
  sed "s|@BASE@|$BASE|g; s|@LOGIN@|$LOGIN|g" "$(dirname "$SELF")/slurm.conf.in" > "$SLURM_CONF"
  (umask 077; head -c 1024 /dev/urandom > "$BASE/munge.key")
  # a name server that cannot be reached costs 10 s for each name
  sed 's/^hosts:.*/hosts: files/' /etc/nsswitch.conf > "$BASE/nsswitch.conf"
  printf '127.0.0.1 localhost\n%s login\n' $LOGIN > "$BASE/hosts"
  : > "$BASE/gres.conf"
  local node gpu
  for ((gpu = 0; gpu < GPUS; gpu++)); do  # SLURM wants character devices: these are /dev/null by another name
    [ -c "$BASE/dev/gpu$gpu" ] || mknod "$BASE/dev/gpu$gpu" c 1 3
  done
  for ((node = 1; node <= NODES; node++)); do
    echo "$SUBNET.$((10 + node)) node$node" >> "$BASE/hosts"
    mkdir -p "$BASE/spool/node$node"
    echo "NodeName=node$node NodeAddr=$SUBNET.$((10 + node)) CPUs=$CPUS RealMemory=10000 Gres=gpu:$GPUS State=UNKNOWN" >> "$SLURM_CONF"
    [ "$GPUS" = 0 ] || echo "NodeName=node$node Name=gpu File=$BASE/dev/gpu[0-$((GPUS - 1))]" >> "$BASE/gres.conf"
  done
}

# The login machine; becomes process 1 of the cluster. `in` enters here, from outside: its /proc is the one of the whole machine.
login() {
  hostname login
  mount --bind "$BASE/hosts" /etc/hosts
  mount --bind "$BASE/nsswitch.conf" /etc/nsswitch.conf
  ip link set lo up
  ip link add nodes type bridge
  ip addr add $LOGIN/24 dev nodes
  ip link set nodes up
  exec unshare --mount --mount-proc "$SELF" manage
}

manage() {
  declare -A nodes
  local turn node
  munged --foreground --force --socket="$BASE/run/munge.sock" --key-file="$BASE/munge.key" --pid-file="$BASE/run/munged.pid" \
    --log-file="$BASE/log/munged.log" --seed-file="$BASE/run/munged.seed" > "$BASE/log/munged.out" 2>&1 &
  until_holds 10 munge_answers
  slurmctld -D -c -i > "$BASE/log/slurmctld.out" 2>&1 &
  until_holds 10 controller_answers  # a slurmd that finds no controller waits for a second
  for ((node = 1; node <= NODES; node++)); do start_node $node; done
  until_holds 30 all_idle
  echo ready
  while read -r verb node; do
    case $verb in
      kill-node) kill -KILL "${nodes[$node]}"; wait "${nodes[$node]}" 2> /dev/null || true ;;
      start-node) start_node "$node" ;;
      *) fail "kill-node K or start-node K, not: $verb" ;;
    esac
    echo "$verb $node: done"
  done
}

munge_answers() { [ -S "$BASE/run/munge.sock" ]; }
controller_answers() { scontrol ping 2> /dev/null | grep -q 'is UP'; }
all_idle() { [ "$(sinfo -h -N -o %T -p main 2> /dev/null | grep -cx idle)" = "$NODES" ]; }

until_holds() {  # SECONDS FUNCTION
  local turn
  for ((turn = 0; turn < 50 * $1; turn++)); do
    if "$2"; then return; fi
    sleep 0.02
  done
  tail -n 5 "$BASE"/log/* >&2 || true
  fail "$2 did not hold within $1 s; see $BASE/log"
}

start_node() {
  ip link del "to$1" 2> /dev/null || true  # of one that was killed, where the kernel has not come to it
  ip link add "to$1" type veth peer name eth0
  unshare --fork --kill-child --pid --net --uts --mount --mount-proc "$SELF" node "$1" >> "$BASE/log/node$1.out" 2>&1 &
  nodes[$1]=$!
  while [ "$(readlink "/proc/$!/ns/net")" = "$(readlink /proc/self/ns/net)" ]; do sleep 0.01; done
  ip link set eth0 netns $!
  ip link set "to$1" master nodes up
}

# A node; becomes process 1 of its own tree.
node() {
  hostname "node$1"
  mount -t tmpfs tmpfs /dev/shm
  ip link set lo up
  until ip link show eth0 > /dev/null 2>&1; do sleep 0.01; done
  ip addr add "$SUBNET.$((10 + $1))/24" dev eth0
  ip link set eth0 up
  slurmd -D -N "node$1" &
  wait $!
}

install() {
  local missing=
  for program in slurmctld slurmd srun munged ip unshare nsenter; do
    command -v $program > /dev/null || missing=yes
  done
  [ -n "$missing" ] || return 0
  if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
    echo "==> installing $PACKAGES"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $PACKAGES > /dev/null; } ||
      echo "apt-get could not install them (is there a network?): the tests of SLURM are skipped"
  else
    echo "the tests of SLURM need root and: apt-get install --no-install-recommends $PACKAGES"
  fi
}

case ${1:-} in
  install) install ;;
  up) configure; echo $$ > "$BASE/run/pid"
      exec unshare --fork --kill-child --pid --net --uts --mount "$SELF" login ;;
  in) shift; exec nsenter --target "$(cat "$BASE/run/pid")" --net --uts --mount --wd="$PWD" "$@" ;;
  login | manage) $1 ;;
  node) node "$2" ;;
  *) sed -n '2,/^set/{/^#/p}' "$SELF" >&2; exit 2 ;;
esac
