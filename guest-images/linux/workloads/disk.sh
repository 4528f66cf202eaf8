#!/bin/sh
# Files on the disk: written, synced, dropped from the cache (by a remount where that is possible), read and verified.
# Needs ftvm.disk or ftvm.root. disk.sh [ROUNDS]
set -eu
rounds=${1:-5}
device=$(sed -n 's/^\([^ ]*\) \/disk ext4 .*/\1/p' /proc/mounts)
if [ -n "$device" ]; then
    place=/disk
elif [ "$(sed -n 's/^[^ ]* \/ \(ext4\) .*/\1/p' /proc/mounts)" = ext4 ]; then
    place=/var/tmp
else
    echo "workload disk: no disk; give the kernel ftvm.disk=/dev/vda or ftvm.root=/dev/vda" >&2
    exit 1
fi
dir=$place/workload
forget() {
    sync
    if [ -n "$device" ]; then
        umount /disk
        mount -t ext4 "$device" /disk
    else
        echo 3 >/proc/sys/vm/drop_caches
    fi
}
sums() {
    (cd $dir && find . -type f | sort | xargs md5sum)
}
rm -rf $dir
round=0
sum=start
while [ $round -lt "$rounds" ]; do
    mkdir -p $dir/$round
    for n in $(seq 1 20); do
        yes "$sum $n" | dd of=$dir/$round/$n bs=1024 count=$n iflag=fullblock conv=fsync 2>/dev/null
    done
    yes "$sum" | dd of=$dir/large bs=65536 count=64 iflag=fullblock 2>/dev/null
    before=$(sums)
    forget
    after=$(sums)
    [ "$before" = "$after" ] || {
        echo "workload disk: what was read is not what was written, round $round" >&2
        exit 1
    }
    sum=$(echo "$after" | md5sum | cut -d ' ' -f 1)
    round=$((round + 1))
done
rm -r $dir
sync
echo "workload disk ok $sum"
