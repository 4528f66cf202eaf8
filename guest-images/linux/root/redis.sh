#!/bin/sh
# Starts redis-server and waits until it answers: redis.sh [always|everysec|no]
set -eu
redis-server /etc/ftvm/redis.conf --appendfsync "${1:-everysec}"
tries=0
until [ "$(redis-cli ping 2>/dev/null)" = PONG ]; do
    tries=$((tries + 1))
    [ $tries -lt 600 ] || exit 1
    usleep 50000
done
