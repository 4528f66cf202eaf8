#!/bin/sh
# Files in memory: many small ones, large ones, found and removed. tmpfs.sh [ROUNDS]
set -eu
rounds=${1:-5}
dir=/tmp/tmpfs.$$
round=0
sum=start
while [ $round -lt "$rounds" ]; do
    mkdir -p $dir/a $dir/b
    for n in $(seq 1 100); do
        echo "$sum $n" >$dir/a/$n
    done
    yes "$sum" | dd of=$dir/large bs=4096 count=512 iflag=fullblock 2>/dev/null
    cp -r $dir/a $dir/b/copy
    mv $dir/b/copy $dir/c
    sum=$(find $dir -type f | sort | sed "s|$dir/||" >/tmp/list.$$
        cd $dir && xargs md5sum <"/tmp/list.$$" | md5sum | cut -d ' ' -f 1)
    rm -r $dir /tmp/list.$$
    round=$((round + 1))
done
echo "workload tmpfs ok $sum"
