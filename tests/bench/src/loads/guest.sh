#!/bin/sh
# What `bench loads` runs in the guest. A line on the serial console, `ID LOAD SECONDS`, asks for a load; the answers are
# `load ID ready` when it begins and `load ID done ROUNDS HUNDREDTHS` when it is over, by the guest's own clock.
stty -echo </dev/ttyS0
exec 3</dev/ttyS0
file=/var/tmp/load
mkfifo /tmp/open

# Hundredths of a second since boot. Only builtins: a fork would be part of the load.
look() {
    read -r up rest </proc/uptime
    now=${up%.*}${up#*.}
}

# Repeats a round until the time is over.
repeat() {
    echo "load $id ready"
    count=0
    look
    begun=$now
    while [ "$now" -lt $((begun + seconds * 100)) ]; do
        "$@"
        count=$((count + 1))
        look
    done
    echo "load $id done $count $((now - begun))"
}

# One process, no system calls.
cpu_round() {
    i=0
    while [ $i -lt 5000 ]; do
        i=$((i + 1))
    done
}

fork_round() {
    i=0
    while [ $i -lt 10 ]; do
        /bin/true
        i=$((i + 1))
    done
}

# 2 MiB to the disk, and durable.
write_round() {
    dd if=/dev/zero of=$file bs=65536 count=32 conv=fsync 2>/dev/null
}

# The same from the disk: the cache is empty.
read_round() {
    echo 1 >/proc/sys/vm/drop_caches
    dd if=$file of=/dev/null bs=65536 2>/dev/null
}

echo "load 0 ready"
while read -r id load seconds <&3; do
    case $load in
    idle) repeat sleep "$seconds" ;;
    cpu) repeat cpu_round ;;
    fork) repeat fork_round ;;
    disk-write)
        repeat write_round
        rm $file
        ;;
    disk-read)
        # Not zeros: what is read travels in the log.
        cat /bin/busybox /bin/busybox | dd of=$file bs=65536 count=32 iflag=fullblock conv=fsync 2>/dev/null
        repeat read_round
        rm $file
        ;;
    net-receive)
        echo "load $id ready"
        # Standard input never ends, or nc would close the connection.
        nc -l -p 7001 <>/tmp/open >/dev/null
        echo "load $id done 0 0"
        ;;
    net-transmit)
        echo "load $id ready"
        nc -l -p 7002 </dev/zero >/dev/null
        echo "load $id done 0 0"
        ;;
    redis)
        /etc/ftvm/redis.sh everysec
        echo "load $id ready"
        read -r stop <&3
        redis-cli shutdown nosave >/dev/null
        echo "load $id done 0 0"
        ;;
    off) exit 0 ;;
    *) echo "load $id unknown" ;;
    esac
done
