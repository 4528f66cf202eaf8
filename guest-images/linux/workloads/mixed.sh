#!/bin/sh
# Several workloads, two at a time, chosen by a seed. mixed.sh [SEED [ROUNDS]]
set -eu
seed=${1:-1}
rounds=${2:-6}
here=$(dirname "$0")
with_disk=
grep -q ' \(/disk\|/\) ext4 ' /proc/mounts && with_disk=yes
random=$seed
# Sets `chosen` to a workload: the high bits of a linear congruential generator (Numerical Recipes).
choose() {
    random=$(((random * 1664525 + 1013904223) % 4294967296))
    case $((random / 65536 % 8)) in
    0) chosen="cpu 3" ;;
    1) chosen="fork 30" ;;
    2) chosen="pipe 2" ;;
    3) chosen="tmpfs 1" ;;
    4) chosen="net 2" ;;
    5) chosen="timers 30" ;;
    6) chosen="sleep 1" ;;
    *) chosen=${with_disk:+disk 1} chosen=${chosen:-cpu 2} ;;
    esac
}
run() {
    # shellcheck disable=SC2086
    set -- $1
    sh "$here/$1.sh" "$2"
}
out=/tmp/mixed.$$
round=0
sum=start
while [ $round -lt "$rounds" ]; do
    choose
    first=$chosen
    choose
    # Not one thing twice at the same time: names of files, ports and the mount are shared.
    while [ "$first" = "$chosen" ]; do choose; done
    run "$first" >$out.1 &
    run "$chosen" >$out.2 || exit 1
    wait $! || exit 1
    cat $out.1 $out.2
    sum=$(cat $out.1 $out.2 | echo "$sum $(cat)" | md5sum | cut -d ' ' -f 1)
    round=$((round + 1))
done
rm $out.1 $out.2
echo "workload mixed ok $sum"
