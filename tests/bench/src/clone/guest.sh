#!/bin/sh
# What `bench clone` runs in the guest: writes ftvm.dirty MiB of its memory each second, a quarter of them at a time, and
# says each second what it wrote: `dirty KIB MS`, by its own clock. The pages are never zero.
rate=$(sed -n 's/.*ftvm.dirty=\([0-9]*\).*/\1/p' /proc/cmdline)
area=/dev/shm/area
# Who wants to move it while it is small does it now.
echo "dirty begins"
sleep 1
# Pages in turn, over more memory than a second writes.
size=64
i=0
while [ $i -lt $size ]; do
    dd if=/bin/busybox of=$area bs=1048576 count=1 seek=$i conv=notrunc 2>/dev/null
    i=$((i + 1))
done

# Hundredths of a second since boot.
look() {
    read -r up rest </proc/uptime
    now=${up%.*}${up#*.}
}

look
due=$now begun=$now at=0 quarter=0 written=0
while :; do
    mib=$((rate * (quarter + 1) / 4 - rate * quarter / 4))
    [ $((at + mib)) -le $size ] || at=0
    i=0
    while [ $i -lt $mib ]; do
        dd if=/bin/busybox of=$area bs=1048576 count=1 seek=$((at + i)) conv=notrunc 2>/dev/null
        i=$((i + 1))
    done
    at=$((at + mib)) written=$((written + mib)) quarter=$(((quarter + 1) % 4)) due=$((due + 25))
    look
    if [ $quarter = 0 ]; then
        echo "dirty $((written * 1024)) $(((now - begun) * 10))"
        begun=$now written=0
    fi
    # What cannot be done in time is not made up for.
    [ $due -gt "$now" ] || due=$now
    usleep $(((due - now) * 10000))
done
