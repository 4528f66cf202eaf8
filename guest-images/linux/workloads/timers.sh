#!/bin/sh
# Many timers at the same time. timers.sh [PROCESSES]
set -eu
count=${1:-100}
dir=/tmp/timers.$$
mkdir $dir
for n in $(seq 1 "$count"); do
    { usleep $((n * 7919 % 1000 * 2000)) && : >$dir/$n; } &
done
wait
sum=$(cd $dir && ls | sort -n | md5sum | cut -d ' ' -f 1)
rm -r $dir
echo "workload timers ok $sum"
