#!/bin/sh
# A guest that counts outlives its host, on one machine and without root (KVM must be usable). Its console is a file
# that both sides share: when the primary is killed, the backup goes on with the very next line.
#
# With tmux and a terminal, primary and backup get panes of their own; otherwise they run in the background.
set -eu

TICKS=${TICKS:-1500}   # lines that the guest prints, 100 a second
KILL_AT=${KILL_AT:-300} # the primary dies after so many
D=${D:-500}            # detection time, ms
L=${L:-300}            # lease, ms
PORT=${PORT:-7000}     # of the logging channel
LIMIT=${LIMIT:-60}     # seconds to wait for any one thing
FTVM=${FTVM:-$(command -v ftvm || echo "$(dirname "$0")/../../target/release/ftvm")}

# The panes belong to a tmux session: start one, and this script anew in it.
if [ -t 0 ] && [ -t 1 ] && [ -z "${TMUX:-}" ] && command -v tmux >/dev/null; then
    exec tmux new-session "FTVM='$FTVM' TICKS=$TICKS KILL_AT=$KILL_AT D=$D L=$L PORT=$PORT LIMIT=$LIMIT sh '$0'
        echo 'Enter ends this.'; read -r enter"
fi

DIR=$(mktemp -d)
primary='' backup=''
fail() {
    echo "FAILED: $*" >&2
    tail -n 5 "$DIR"/*.events "$DIR"/*.err "$DIR/console" >&2 || true
    exit 1
}
alive() { [ -n "$1" ] && kill -0 "$1" 2>/dev/null; }
cleanup() {
    for pid in $primary $backup; do
        kill -9 "$pid" 2>/dev/null || true
    done
    rm -rf "$DIR"
}
trap cleanup EXIT
trap 'exit 1' HUP INT TERM

# wait_for WHAT COMMAND...: until the command succeeds, for at most LIMIT seconds.
wait_for() {
    what=$1
    shift
    end=$(($(date +%s) + LIMIT))
    until "$@" 2>/dev/null; do
        [ "$(date +%s)" -lt "$end" ] || fail "no $what within $LIMIT s"
        sleep 0.1
    done
}

# start NAME COMMAND: in a pane, or in the background; sets `pid`.
start() {
    echo "$1:"
    echo "    $2"
    if [ -n "${TMUX:-}" ] && [ -t 1 ]; then
        pid=$(tmux split-window -d -P -F '#{pane_pid}' "exec $2")
    else
        sh -c "exec $2" 2>"$DIR/$1.err" &
        pid=$!
    fi
}

mkdir "$DIR/shared"
both="--shared $DIR/shared --console file=$DIR/console"
start primary "$FTVM run --primary --kernel builtin:pulse --cmdline ticks=$TICKS --listen 127.0.0.1:$PORT \
--detection $D --lease $L $both --events $DIR/primary.events"
primary=$pid
start backup "$FTVM run --backup --peer 127.0.0.1:$PORT $both --events $DIR/backup.events"
backup=$pid

wait_for "protection" grep -q '"protection":"protected"' "$DIR/primary.events"
echo "== protected; the guest counts"
wait_for "line $KILL_AT" grep -qx "pulse $KILL_AT" "$DIR/console"
alive "$primary" || fail "the primary has ended by itself"

echo "== kill -9 the primary, after $(wc -l <"$DIR/console") lines"
kill -9 "$primary"
wait "$primary" 2>/dev/null || true # not a child if it has a pane
wait_for "go-live of the backup" grep -q '"event":"went-live"' "$DIR/backup.events"
echo "== the backup is live"

wait_for "last line" grep -qx "pulse $TICKS" "$DIR/console"
ended() { ! alive "$backup"; }
wait_for "end of the backup" ended
echo "== the guest has ended after $(wc -l <"$DIR/console") lines"

awk -v ticks="$TICKS" '
    $0 != "pulse " NR { print "line " NR " is: " $0; wrong = 1; exit }
    END { exit wrong || NR != ticks }' "$DIR/console" || fail "lines are lost, repeated or out of order"
echo "== passed: $TICKS lines, each exactly once"
