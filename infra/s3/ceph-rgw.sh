#!/usr/bin/env bash
# A real S3 store on this machine, for tests: one monitor, one disk in a file and one gateway of Ceph, on loopback.
#
#   infra/s3/ceph-rgw.sh install            from Debian or Ubuntu; 34 s, 100 packages, as root
#   infra/s3/ceph-rgw.sh start FOLDER PORT  all state goes below FOLDER; prints `export` lines with the address and the keys; 15 s
#   infra/s3/ceph-rgw.sh stop FOLDER
#
# Exit status 3: Ceph cannot be had here. The store has no encryption and one known account: never use it for data.
set -euo pipefail

install_ceph() {
    if command -v radosgw ceph-mon ceph-osd >/dev/null; then return; fi
    if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
        echo "want radosgw, ceph-mon and ceph-osd, or apt-get and root to install them" >&2
        exit 3
    fi
    export DEBIAN_FRONTEND=noninteractive
    # Only the download is bounded: a package manager that is ended while it unpacks leaves a broken system.
    local packages="radosgw ceph-mon ceph-osd"
    if ! { timeout 30 apt-get update -qq && timeout 60 apt-get install -y -qq --no-install-recommends --download-only $packages &&
        apt-get install -y -qq --no-install-recommends --no-download $packages; } >/dev/null 2>&1; then
        echo "apt-get cannot install $packages here" >&2
        exit 3
    fi
}

wait_for() {  # wait_for SECONDS COMMAND...; a command is ended after 5 s
    local limit=$((SECONDS + $1))
    shift
    until timeout 5 "$@" >/dev/null 2>&1; do
        if [ $SECONDS -ge $limit ]; then echo "waited in vain for: $*"; return 1; fi
        sleep 0.5
    done
}

give_up() {
    trap - EXIT
    echo "Ceph did not start; the last lines of its log, all are in $folder/log:" >&2
    tail -5 "$folder/log/start.log" >&2
    stop_ceph "$folder"
    exit 1
}

start_ceph() {
    command -v radosgw ceph-mon ceph-osd >/dev/null || { echo "want Ceph; run: $0 install" >&2; exit 3; }
    mkdir -p "$1"
    folder=$(readlink -f "$1") port=$2
    mkdir -p "$folder"/{mon,osd,rgw,log,run}
    cd "$folder"
    local cluster monitors
    cluster=$(cat /proc/sys/kernel/random/uuid)
    monitors="[v2:127.0.0.1:$((port + 1)),v1:127.0.0.1:$((port + 2))]"
    cat >ceph.conf <<SETTINGS
[global]
fsid = $cluster
mon host = $monitors
mon initial members = a
auth cluster required = none
auth service required = none
auth client required = none
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind ipv6 = false
osd pool default size = 1
osd pool default min size = 1
mon allow pool size one = true
osd crush chooseleaf type = 0
osd pool default pg num = 4
osd pool default pgp num = 4
mon max pg per osd = 1000
mon data avail warn = 2
mon data avail crit = 1
log file = $folder/log/\$name.log
admin socket = $folder/run/\$name.asok
run dir = $folder/run
pid file = $folder/run/\$name.pid
[mon.a]
mon data = $folder/mon
[osd.0]
osd data = $folder/osd
osd objectstore = bluestore
bluestore block size = 10737418240
bluestore block create = true
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:$port
rgw data = $folder/rgw
rgw dns name = 127.0.0.1
SETTINGS
    export CEPH_CONF=$folder/ceph.conf
    trap give_up EXIT  # `set -e` ends the script at the first command that fails
    {
        monmaptool --create --fsid "$cluster" --addv a "$monitors" monmap
        ceph-mon --mkfs -i a --monmap monmap
        ceph-mon -i a
        wait_for 30 ceph -s
        local disk
        disk=$(cat /proc/sys/kernel/random/uuid)
        ceph osd new "$disk"
        ceph-osd -i 0 --mkfs --osd-uuid "$disk"
        ceph-osd -i 0
        ceph auth get-or-create client.rgw mon "allow *" osd "allow *" -o rgw/keyring
        # the gateway would insist on encryption towards the monitor, which has none without authentication
        radosgw -n client.rgw --ms-mon-client-mode "crc secure"
        wait_for 60 bash -c "exec 3<>/dev/tcp/127.0.0.1/$port"
        radosgw-admin user create --uid=test --display-name=test --access-key=emuedit-test --secret-key=emuedit-test-secret
    } >log/start.log 2>&1
    trap - EXIT
    echo "export S3_ENDPOINT_URL=http://127.0.0.1:$port S3_ACCESS_KEY=emuedit-test S3_SECRET_KEY=emuedit-test-secret"
}

stop_ceph() {
    local file pid
    for file in "$1"/run/client.rgw.pid "$1"/run/osd.0.pid "$1"/run/mon.a.pid; do
        if [ -s "$file" ]; then
            pid=$(cat "$file")
            kill "$pid" 2>/dev/null || continue
            for _ in $(seq 40); do kill -0 "$pid" 2>/dev/null || break; sleep 0.25; done
            kill -9 "$pid" 2>/dev/null || true
        fi
    done
}

case "${1:-} $#" in
    "install 1") install_ceph ;;
    "start 3") start_ceph "$2" "$3" ;;
    "stop 2") stop_ceph "$2" ;;
    *) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
