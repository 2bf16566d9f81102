#!/bin/busybox sh
# The first process of a host of the lab: names the interfaces, makes br0, starts the agent.
# This shell prefers its own ip to the real one, hence the path.
ip=/usr/bin/ip
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ln -s /proc/self/fd /dev/fd

while read -r module; do
    # Emulated hosts have the same clock, and on a busy computer each takes it for another one's: KVM would not load the
    # other host's state.
    parameters=
    [ "$module" != kvm.ko ] || parameters=tsc_tolerance_ppm=100000
    # shellcheck disable=SC2086 # each a word
    insmod "/lib/mods/$module" $parameters || echo "lab: the module $module was not loaded"
done < /lib/mods/order

for word in $(cat /proc/cmdline); do
    case $word in lab.host=*) n=${word#lab.host=} ;; esac
done
hostname "h$n"
$ip link set lo up

# By hardware address, because the order in which a kernel finds interfaces is no promise.
for device in /sys/class/net/eth*; do
    read -r mac < "$device/address"
    case $mac in
        *:01) name=svc ;;
        *:02) name=rep ;;
        *:03) name=ctl ;;
        *) continue ;;
    esac
    $ip link set "${device##*/}" name $name
done
$ip -batch - <<EOF
addr add 198.51.100.$n/24 dev rep
link set rep up
addr add 203.0.113.$n/24 dev ctl
link set ctl up
link add br0 type bridge forward_delay 0 stp_state 0 mcast_snooping 0
link set svc master br0 up
addr add 192.0.2.$n/24 dev br0
link set br0 up
EOF

read -r uptime rest < /proc/uptime
echo "lab: host h$n is up after $uptime s"
# This shell stays the first process and reaps the orphans; without the agent the host is of no use.
lab-agent "203.0.113.$n:2022"
echo "lab: the agent ended"
poweroff -f
