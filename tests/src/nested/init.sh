#!/usr/bin/busybox sh
# The first process of a nested host: loads the modules, runs /run/command, and reports how it ended.
# Ports of the virtio console: 1 the command's stdout, 2 its stderr, 3 an archive of /out, 4 control (see qemu.rs).
export PATH=/usr/bin HOME=/root

broken() {
    echo "nested host: broken: $*" >/dev/console
    sleep 1 # the console is slow; power-off would cut it short
    poweroff -f
}

mount -t devtmpfs dev /dev && mount -t proc proc /proc && mount -t sysfs sys /sys || broken "cannot mount /dev, /proc, /sys"
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts && mount -t tmpfs shm /dev/shm || broken "cannot mount below /dev"
for module in $(cat /etc/modules); do
    insmod "/usr/lib/modules/$module.ko" || broken "cannot load module $module"
done
ip link set lo up || broken "cannot start the loopback interface"
tries=0
until [ -e /dev/vport0p4 ]; do
    tries=$((tries + 1))
    [ $tries -lt 1000 ] || broken "the virtio console has no port 4 after 10 seconds"
    usleep 10000
done
exec 9>/dev/vport0p4

# A port opens only once, so that `echo >/dev/stderr` in a script would fail on one: the command writes into pipes.
# The counts tell the other side when it has everything.
mkdir /run/nested && mkfifo /run/nested/stdout /run/nested/stderr || broken "cannot make pipes"
tee /dev/vport0p1 </run/nested/stdout | wc -c >/run/nested/stdout.count &
stdout=$!
tee /dev/vport0p2 </run/nested/stderr | wc -c >/run/nested/stderr.count &
stderr=$!

. /run/settings
echo ready >&9
# A session of its own, for killall5 below.
setsid sh /run/command </dev/null >/run/nested/stdout 2>/run/nested/stderr 9>&- &
command=$!
{ sleep "$timeout" && touch /run/nested/timeout && kill -9 $command; } 9>&- &
wait $command
code=$?
[ ! -e /run/nested/timeout ] || code=timeout
# What the command left running would keep the pipes open. This spares only processes of this session.
killall5 -9
wait $stdout $stderr
sent=0
if [ "$out" = wanted ]; then
    sent=$(cd /out && find . -type f -o -type d | cpio -o -H newc 2>/dev/null | tee /dev/vport0p3 | wc -c)
fi
echo "ended $code $(cat /run/nested/stdout.count) $(cat /run/nested/stderr.count) $sent" >&9
# The other side ends this machine as soon as it has read everything.
sleep 3600
