#!/bin/sh
# Data through chains of pipes, and through a named one. pipe.sh [ROUNDS]
set -eu
rounds=${1:-10}
fifo=/tmp/pipe.$$
mkfifo $fifo
round=0
sum=start
while [ $round -lt "$rounds" ]; do
    { seq 1 10000; echo "$sum"; } | cat | tr 0-9 a-j | cat >$fifo &
    sum=$(cat <$fifo | tr a-j 0-9 | rev | md5sum | cut -d ' ' -f 1)
    wait
    round=$((round + 1))
done
rm $fifo
echo "workload pipe ok $sum"
