#!/bin/sh
# The time stamp counter, read by programs two at a time; and what would read it behind ftvm's back: a kernel module,
# which must not load, and another kernel, which must not start. Right under ftvm only. tsc.sh [ROUNDS]
set -eu
rounds=${1:-3}
dir=/tmp/tsc.$$
mkdir $dir
wrong() {
    echo "workload tsc: $*" >&2
    exit 1
}
module=jitterentropy_rng
# It may fail for other reasons too: the kernel says which it was.
if insmod /ftvm/refused/$module.ko 2>/dev/null || ! dmesg | grep -q "Module $module is blacklisted"; then
    wrong "the kernel does not keep $module out, which reads the counter"
fi
[ "$(cat /proc/sys/kernel/kexec_load_disabled)" = 1 ] || wrong "kexec is allowed"
round=0
total=0
while [ $round -lt "$rounds" ]; do
    rdtsc >$dir/1 &
    # Hidden, RDTSCP is an invalid instruction on Intel's processors: SIGILL.
    rdtscp >$dir/2 || [ $? = 132 ] || wrong "RDTSCP did not ascend"
    wait $! || wrong "RDTSC did not ascend"
    cat $dir/1 $dir/2
    total=$((total + $(wc -l <$dir/1)))
    round=$((round + 1))
done
rm -r $dir
echo "workload tsc ok $total"
