#!/usr/bin/busybox sh
# The first process of a nested host: loads the modules, runs /run/command, and reports how it ended.
# Ports of the virtio console: 1 the command's stdout, 2 its stderr, 3 an archive of /out, 4 control (see qemu.rs).
export PATH=/usr/bin HOME=/root

broken() {
    echo "nested host: broken: $*" >/dev/console
    sleep 1 # the console is slow; power-off would cut it short
    poweroff -f
}

# Kills what is in a session: kernel threads and the processes of this script are in none. True if there was anything.
kill_sessions() {
    found=1
    for process in /proc/[0-9]*; do
        read -r stat 2>/dev/null <"$process/stat" || continue
        set -- ${stat##*) } # state, parent, group, session
        [ "$4" = 0 ] || [ "$1" = Z ] || { kill -9 "${process#/proc/}" 2>/dev/null && found=0; }
    done
    return $found
}

mount -t devtmpfs dev /dev && mount -t proc proc /proc && mount -t sysfs sys /sys || broken "cannot mount /dev, /proc, /sys"
mount -t debugfs debug /sys/kernel/debug || broken "cannot mount /sys/kernel/debug"
mkdir -p /dev/pts /dev/shm
ln -s /proc/self/fd /dev/fd && ln -s fd/0 /dev/stdin && ln -s fd/1 /dev/stdout && ln -s fd/2 /dev/stderr
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

# The kernel counts what is written to a port: so the other side knows when it has everything.
sent() {
    sed -n 's/^bytes_sent: //p' "/sys/kernel/debug/virtio-ports/vport0p$1"
}

# A port opens only once, so that `echo >/dev/stderr` in a script would fail on one: the command writes into pipes.
mkdir /run/nested && mkfifo /run/nested/stdout /run/nested/stderr || broken "cannot make pipes"
cat </run/nested/stdout >/dev/vport0p1 &
stdout=$!
cat </run/nested/stderr >/dev/vport0p2 &
stderr=$!

. /run/settings
echo ready >&9
setsid sh /run/command </dev/null >/run/nested/stdout 2>/run/nested/stderr 9>&- &
command=$!
{ sleep "$timeout" && touch /run/nested/timeout && kill -9 $command; } 9>&- &
wait $command
code=$?
[ ! -e /run/nested/timeout ] || code=timeout
# What the command left running would keep the pipes open.
while kill_sessions; do usleep 1000; done
wait $stdout $stderr
if [ "$out" = wanted ]; then
    (cd /out && find . -type f -o -type d | cpio -o -H newc 2>/dev/null) >/dev/vport0p3
fi
echo "ended $code $(sent 1) $(sent 2) $(sent 3)" >&9
# The other side ends this machine as soon as it has read everything.
sleep 3600
