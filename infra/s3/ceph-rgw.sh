#!/usr/bin/env bash
# A real S3 store on this machine: one monitor, one disk in a file and one gateway of Ceph, on loopback.
#
#   infra/s3/ceph-rgw.sh install            from Debian or Ubuntu; 34 s, 100 packages, as root
#   infra/s3/ceph-rgw.sh start FOLDER PORT  for tests; prints `export` lines with the address and the keys; 15 s
#   infra/s3/ceph-rgw.sh stop FOLDER
#   infra/s3/ceph-rgw.sh run FOLDER PORT MONITOR_PORT   until SIGTERM, for `emuedit up`; FOLDER/complete: the store is ready
#
# All state goes below FOLDER, and the next start uses it again. The keys are S3_ACCESS_KEY and S3_SECRET_KEY; `start` has known
# ones by default. Exit status 3: Ceph is not installed, or cannot be; 1: it did not start. There is no encryption and one copy
# of the data, and the monitor asks for no key: every account of the machine can reach the data.
set -euo pipefail

is_installed() {
    local tool
    for tool in radosgw radosgw-admin ceph ceph-mon ceph-osd monmaptool; do command -v $tool >/dev/null || return 1; done
}

install_ceph() {
    if is_installed; then return; fi
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
    trap - EXIT TERM INT
    echo "Ceph did not start; the last lines of its log, all are in $folder/log:" >&2
    tail -5 "$folder/log/start.log" >&2
    stop_ceph "$folder"
    end $daemons
    exit 1
}

start_ceph() {  # start_ceph FOLDER PORT MONITOR_PORT [-f]; -f: the daemons are children of this script
    is_installed || { echo "want Ceph; run: $0 install" >&2; exit 3; }
    mkdir -p -m 700 "$1"
    folder=$(readlink -f "$1")
    local port=$2 foreground=${4:-} cluster monitors is_new=""
    monitors="[v2:127.0.0.1:$3]"
    cd "$folder"
    if [ ! -e complete ]; then  # new, or its first start was ended halfway: without an account there is no data in it
        is_new=yes
        rm -rf mon osd rgw
        cat /proc/sys/kernel/random/uuid >fsid
    fi
    cluster=$(cat fsid)
    mkdir -p mon osd rgw log run
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
ms bind msgr1 = false
osd pool default size = 1
osd pool default min size = 1
mon allow pool size one = true
osd crush chooseleaf type = 0
osd pool default pg num = 4
osd pool default pgp num = 4
mon max pg per osd = 1000
mon data avail warn = 2
mon data avail crit = 1
osd memory target = 1073741824
log file = $folder/log/\$name.log
# none: a path below a long FOLDER would exceed the 107 bytes of a socket's name
admin socket =
run dir = $folder/run
pid file = $folder/run/\$name.pid
[mon.a]
mon data = $folder/mon
[osd.0]
osd data = $folder/osd
osd objectstore = bluestore
bluestore block size = $((${CEPH_DISK_GB:-10} << 30))
bluestore block create = true
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:$port
rgw data = $folder/rgw
rgw dns name = 127.0.0.1
SETTINGS
    export CEPH_CONF=$folder/ceph.conf
    trap give_up EXIT  # `set -e` ends the script at the first command that fails
    {
        monmaptool --create --clobber --fsid "$cluster" --addv a "$monitors" monmap
        if [ "$is_new" ]; then ceph-mon --mkfs -i a --monmap monmap; else ceph-mon -i a --inject-monmap monmap; fi
        launch "$foreground" ceph-mon -i a
        wait_for 30 ceph -s
        if [ "$is_new" ]; then
            local disk
            disk=$(cat /proc/sys/kernel/random/uuid)
            ceph osd new "$disk"
            ceph-osd -i 0 --mkfs --osd-uuid "$disk"
        fi
        launch "$foreground" ceph-osd -i 0
        if [ "$is_new" ]; then ceph auth get-or-create client.rgw mon "allow *" osd "allow *" -o rgw/keyring; fi
        # the gateway would insist on encryption towards the monitor, which has none without authentication
        launch "$foreground" radosgw -n client.rgw --ms-mon-client-mode "crc secure"
        wait_for 60 bash -c "exec 3<>/dev/tcp/127.0.0.1/$port"
        if [ "$is_new" ]; then
            # prints the keys, which do not belong into a log
            radosgw-admin user create --uid=emuedit --display-name=emuedit \
                --access-key="$S3_ACCESS_KEY" --secret-key="$S3_SECRET_KEY" >/dev/null
        fi
        touch complete
    } >log/start.log 2>&1
    trap - EXIT
}

launch() {  # launch FOREGROUND DAEMON ARGUMENTS...; in the foreground not all of them write a file with their process id
    if [ "$1" ]; then
        "${@:2}" "$1" &
        daemons="$! $daemons"
    else
        "${@:2}"
    fi
}

run_ceph() {
    folder=$1
    : "${S3_ACCESS_KEY:?want the key of the account, got none}" "${S3_SECRET_KEY:?want the secret of the account, got none}"
    trap 'trap - EXIT; end $daemons; exit 0' TERM INT
    start_ceph "$1" "$2" "$3" -f
    wait -n || true
    echo "a daemon of Ceph ended by itself; its log is in $folder/log" >&2
    end $daemons
    exit 1
}

stop_ceph() {
    local file
    for file in "$1"/run/client.rgw.pid "$1"/run/osd.0.pid "$1"/run/mon.a.pid; do
        [ -s "$file" ] || continue
        case "$(cat "/proc/$(cat "$file")/comm" 2>/dev/null)" in ceph-* | radosgw) end "$(cat "$file")" ;; esac
        rm -f "$file"
    done
}

end() {  # end PROCESS...; one after the other, each killed after 10 s
    local pid
    for pid in "$@"; do
        kill "$pid" 2>/dev/null || continue
        for _ in $(seq 40); do kill -0 "$pid" 2>/dev/null || break; sleep 0.25; done
        kill -9 "$pid" 2>/dev/null || true
    done
}

daemons=""  # process ids of the children, the last one first
case "${1:-} $#" in
    "install 1") install_ceph ;;
    "start 3")
        export S3_ACCESS_KEY=${S3_ACCESS_KEY:-emuedit-test} S3_SECRET_KEY=${S3_SECRET_KEY:-emuedit-test-secret}
        start_ceph "$2" "$3" $(($3 + 1))
        echo "export S3_ENDPOINT_URL=http://127.0.0.1:$3 S3_ACCESS_KEY=$S3_ACCESS_KEY S3_SECRET_KEY=$S3_SECRET_KEY"
        ;;
    "run 4") run_ceph "$2" "$3" "$4" ;;
    "stop 2") stop_ceph "$2" ;;
    *) sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
