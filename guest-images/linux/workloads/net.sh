#!/bin/sh
# TCP: data through a connection to this machine itself, or, with an address, a file from that peer's web server.
# net.sh [ROUNDS [URL]]
set -eu
rounds=${1:-10}
url=${2:-}
# Held open for writing, it never ends: busybox's nc closes a connection for good when its input or its peer's ends.
open=/tmp/net.$$
mkfifo $open
round=0
sum=start
while [ $round -lt "$rounds" ]; do
    if [ -n "$url" ]; then
        sum=$(wget -q -O - "$url" | md5sum | cut -d ' ' -f 1)
    else
        port=$((7000 + round % 1000))
        seq 1 20000 | sed "s/\$/$sum/" | nc -l -p $port >/dev/null &
        until netstat -ltn | grep -q ":$port "; do usleep 10000; done
        sum=$(nc 127.0.0.1 $port <>$open | md5sum | cut -d ' ' -f 1)
        wait
    fi
    round=$((round + 1))
done
rm $open
echo "workload net ok $sum"
