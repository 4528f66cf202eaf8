#!/bin/sh
# A host dies under a Redis benchmark, and no client notices. Two hosts and a client, as network namespaces:
#
#   host-a: ftvm --primary -- tap0 -- br0 (10.77.0.1) -- eth0 --+
#   host-b: ftvm --backup --- tap0 -- br0 (10.77.0.2) -- eth0 --+-- bridge ftvm-switch
#   client: redis-benchmark ------------- (192.168.7.1) - eth0 --+
#
# The guest is 192.168.7.2, wherever it lives. Needs root, KVM, ip, redis-cli and redis-benchmark.
set -eu

D=${D:-500}         # detection time, ms
L=${L:-300}         # lease, ms
N=${N:-20000}       # requests of each kind
LIMIT=${LIMIT:-60}  # seconds to wait for any one thing
FTVM=${FTVM:-$(command -v ftvm || echo "$(dirname "$0")/../../target/release/ftvm")}
GUEST=192.168.7.2

[ "$(id -u)" = 0 ] || { echo "network namespaces need root" >&2; exit 1; }

step() { echo "== $*"; }
fail() {
    echo "FAILED: $*" >&2
    tail -n 5 "$DIR"/*.err "$DIR"/*.events >&2 || true
    exit 1
}

# wait_for WHAT COMMAND...: until the command succeeds, for at most LIMIT seconds.
wait_for() {
    what=$1
    shift
    end=$(($(date +%s) + LIMIT))
    until "$@" >/dev/null 2>&1; do
        [ "$(date +%s)" -lt "$end" ] || fail "no $what within $LIMIT s"
        sleep 0.1
    done
}

DIR=$(mktemp -d)
primary='' backup='' benchmark='' switch='' made=''
cleanup() {
    for pid in $primary $backup $benchmark; do
        kill -9 "$pid" 2>/dev/null || true
    done
    wait 2>/dev/null
    # The interfaces in a namespace, and their peers at the switch, go with it.
    for name in $made; do
        ip netns del "$name"
    done
    [ -z "$switch" ] || ip link del "$switch"
    rm -rf "$DIR"
}
trap cleanup EXIT
trap 'exit 1' HUP INT TERM

step "network: host-a, host-b and client at a switch"
mkdir -p /var/run/netns
ip link add ftvm-switch type bridge stp_state 0 forward_delay 0
switch=ftvm-switch
ip link set "$switch" up
for name in host-a host-b client; do
    ip netns add "$name"
    made="$made $name"
    ip link add "$name-sw" type veth peer name eth0 netns "$name"
    ip link set "$name-sw" master "$switch" up
    ip -n "$name" link set lo up
    ip -n "$name" link set eth0 up
done
for name in host-a host-b; do
    ip -n "$name" link add br0 type bridge stp_state 0 forward_delay 0
    ip -n "$name" tuntap add tap0 mode tap
    ip -n "$name" link set tap0 master br0 up
    ip -n "$name" link set eth0 master br0
    ip -n "$name" link set br0 up
done
ip -n host-a addr add 10.77.0.1/24 dev br0
ip -n host-b addr add 10.77.0.2/24 dev br0
ip -n client addr add 192.168.7.1/24 dev eth0

redis() { ip netns exec client redis-cli -h "$GUEST" "$@"; }

step "primary in host-a, backup in host-b"
mkdir "$DIR/shared"
ip netns exec host-a "$FTVM" run --primary --kernel builtin:kv --cmdline "ip=$GUEST/24" \
    --net tap=tap0,mac=52:54:00:77:00:01 --console off --shared "$DIR/shared" --listen 10.77.0.1:7000 \
    --detection "$D" --lease "$L" --events "$DIR/a.events" 2>"$DIR/a.err" &
primary=$!
ip netns exec host-b "$FTVM" run --backup --peer 10.77.0.1:7000 --net tap=tap0 --console off \
    --shared "$DIR/shared" --events "$DIR/b.events" 2>"$DIR/b.err" &
backup=$!
wait_for "protection" grep -q '"protection":"protected"' "$DIR/a.events"

step "SET before the death"
answers() { [ "$(redis PING)" = PONG ]; }
wait_for "answer from the guest" answers
[ "$(redis SET before 'the death')" = OK ] || fail "SET"
[ "$(redis GET before)" = 'the death' ] || fail "GET before the death"

step "redis-benchmark -t set,get -n $N -c 10"
ip netns exec client redis-benchmark -h "$GUEST" -t set,get -n "$N" -c 10 -q >"$DIR/benchmark" 2>&1 &
benchmark=$!
progress() { tr '\r' '\n' <"$DIR/benchmark" | grep -q 'SET: [a-z=]*[1-9]'; }
wait_for "progress of the benchmark" progress
kill -0 "$benchmark" 2>/dev/null || fail "the benchmark ended too early: give it more requests (N)"

step "kill -9 the primary"
kill -9 "$primary"
wait "$primary" 2>/dev/null || true
wait_for "go-live of the backup" grep -q '"event":"went-live"' "$DIR/b.events"
kill -0 "$benchmark" 2>/dev/null || fail "the benchmark has ended before the backup went live"

step "the backup is live; the benchmark goes on"
ended() { ! kill -0 "$benchmark"; }
wait_for "end of the benchmark" ended
wait "$benchmark" || fail "redis-benchmark exited with $?: $(tail -c 300 "$DIR/benchmark")"
benchmark=''
tr '\r' '\n' <"$DIR/benchmark" | grep 'per second'
if grep -Eqi 'error|connection' "$DIR/benchmark"; then
    fail "a client noticed"
fi

step "GET after the death"
[ "$(redis GET before)" = 'the death' ] || fail "what was written before the death is lost"
step "passed: no connection broke, nothing was lost"
