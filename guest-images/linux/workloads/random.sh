#!/bin/sh
# Random numbers of the kernel. Their sum goes to a line of its own: it is the same in a replay, and in nothing else.
# random.sh [KIB]
set -eu
kib=${1:-256}
dd if=/dev/urandom of=/tmp/random.$$ bs=1024 count="$kib" 2>/dev/null
echo "random: $(md5sum </tmp/random.$$ | cut -d ' ' -f 1)"
size=$(wc -c </tmp/random.$$)
rm /tmp/random.$$
echo "workload random ok $size"
