#!/bin/sh
# An idle machine, woken by its timer now and then. sleep.sh [SECONDS]
set -eu
seconds=${1:-5}
slept=0
while [ $slept -lt "$seconds" ]; do
    usleep 500000
    usleep 499000
    usleep 1000
    slept=$((slept + 1))
done
echo "workload sleep ok $slept"
