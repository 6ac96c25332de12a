#!/usr/bin/env bash
# Starts and stops the broker that the tests need. It is a RabbitMQ of its own, on free ports of 127.0.0.1, beside any other.
#
#   brokers.sh start DIR         starts it unless it is running, and prints NAME=value lines (DIR/env holds them too)
#   brokers.sh stop DIR          ends all processes that start began, in whatever state, and deletes the data
#   brokers.sh run DIR -- CMD…   starts it, runs CMD with the variables and without input, stops it, and exits as CMD did
#
#   DISPATCHER_AMQP_CON=URL      if it is set already, that broker is used: start prints it and starts nothing
#   DISPATCHER_RABBITMQCTL=FILE  rabbitmqctl of that node: $DISPATCHER_RABBITMQCTL eval '…'
#   DISPATCHER_RABBITMQ=4.0|4.3  the version to start instead of that of this machine's packages. Needs root. debootstrap
#                                unpacks it once (40 s, 250 MB)
#   DISPATCHER_CACHE=DIR         where it is kept for the next time (default /var/cache/dispatcher)
#   DISPATCHER_BROKERS_PEER=DIR  for start: the node joins the cluster of DIR's running node, and uses its epmd
#   DISPATCHER_BROKERS_CONF=…    for start: more lines of rabbitmq.conf
#   DISPATCHER_BROKERS_ERL=…     for start: the content of advanced.config
#
# DIR names the node. Its log is DIR/rabbitmq.log. If a node died, start starts it again with its data, at the same URL.
# The script installs missing packages of Debian: rabbitmq-server, or debootstrap. Messages go to stderr.
set -euo pipefail

readonly server=/usr/lib/rabbitmq/bin/rabbitmq-server
readonly boot_seconds=90 # a boot takes 8 s on two idle cores

say() { echo "brokers.sh: $*" >&2; }
die() { say "$*"; exit 1; }

. "$(dirname "$0")/packages.sh"
. "$(dirname "$0")/rabbitmq4.sh"

state_of() { printf /tmp/dispatcher-brokers-%s "$(printf %s "$1" | sha256sum | cut -c 1-12)"; }

# The data is not in DIR. It must belong to the user rabbitmq, whom a parent of DIR may keep out (/root, mktemp -d).
# RabbitMQ's scripts also break at spaces. The place of the data follows from DIR's path, so that stop finds it when DIR
# is gone.
name_state() {
	dir=$(realpath -m -- "$1")
	state=$(state_of "$dir")
	tag=DISPATCHER_BROKERS=$state # in the environment of everything we start, so it proves that a process is ours
	if [ -L "$state" ] || { [ -e "$state" ] && ! [ -O "$state" ]; }; then
		die "$state belongs to another user"
	fi
}

# Only one start or stop of a DIR runs at a time. The lock is on the folder itself, so no file is left behind.
locked=
lock() {
	[ -z "$locked" ] && [ -d "$dir" ] || return 0
	exec 9<"$dir"
	flock -w 300 9 || die "another start or stop of $dir does not end"
	locked=yes
}

unlock() {
	exec 9<&-
	locked=
}

# If the server is unpacked but its user does not exist yet, somebody is installing it right now.
installed() { [ -x "$server" ] && command -v epmd >/dev/null && getent passwd rabbitmq >/dev/null; }

install_rabbitmq() {
	installed || install_packages rabbitmq-server
}

# Sets port to the first of 32 free ports. A node uses them for epmd, AMQP and Erlang, and the rest for its command line
# tools.
reserve_ports() {
	local tries=0 other
	exec 8</tmp
	flock -w 60 8 || die "somebody holds a lock on /tmp" # we hold it until the reservation is written
	if [ -f "$state/port" ]; then
		port=$(cat "$state/port")
	else
		while :; do
			[ $((tries++)) -lt 100 ] || die "found no free ports"
			port=$((20000 + RANDOM % 374 * 32)) # below those that the kernel hands out
			for other in /tmp/dispatcher-brokers-*/port; do
				[ -f "$other" ] && [ "$(cat "$other")" = "$port" ] && continue 2
			done
			listens "$port" || listens $((port + 1)) || listens $((port + 2)) || break
		done
		echo "$port" >"$state/port.new"
		mv "$state/port.new" "$state/port"
	fi
	exec 8<&-
}

listens() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# Reports whether the node greets a client as AMQP 0-9-1 demands: with a method frame, Connection.Start.
greets() (
	exec 3<>"/dev/tcp/127.0.0.1/$((port + 1))" || exit 1
	printf 'AMQP\0\0\11\1' >&3
	LC_ALL=C IFS= read -r -t 5 -n 1 -u 3 type
	[ "$type" = $'\1' ]
) 2>/dev/null

write_state() {
	[ -d "$state" ] || mkdir -m 755 "$state"
	reserve_ports
	echo "$version" >"$state/version"
	local as="" node=$state/node owner peer=""
	epmd=$port
	if [ -n "${DISPATCHER_BROKERS_PEER:-}" ]; then
		peer=$(state_of "$(realpath -m -- "$DISPATCHER_BROKERS_PEER")")
		epmd=$(cat "$peer/port") || die "no node runs in $DISPATCHER_BROKERS_PEER"
	fi
	owner=$(id -un)
	if [ -n "$root" ]; then
		owner=$(sed -n 's/^rabbitmq:[^:]*:\([0-9]*:[0-9]*\):.*/\1/p' "$root/etc/passwd") # the IDs in that system
		as="unshare --mount --propagation private $state/enter"
		write_enter
	elif [ "$owner" = root ]; then
		owner=rabbitmq
		as="setpriv --reuid=rabbitmq --regid=rabbitmq --clear-groups"
	fi
	install -d -m 700 -o "${owner%:*}" "$node"
	if [ -n "$peer" ]; then
		install -m 400 -o "${owner%:*}" "$peer/node/.erlang.cookie" "$node/.erlang.cookie"
	elif ! [ -f "$node/.erlang.cookie" ]; then # peers know the first cookie
		od -An -N 20 -tx1 /dev/urandom | tr -d ' \n' | install -m 400 -o "${owner%:*}" /dev/stdin "$node/.erlang.cookie"
	fi
	{
		echo "listeners.tcp.1 = 127.0.0.1:$((port + 1))"
		[ -z "$peer" ] || printf 'cluster_formation.classic_config.nodes.%d = dispatcher-%d@localhost\n' 1 "$epmd" 2 "$port"
		printf '%s\n' "${DISPATCHER_BROKERS_CONF:-}"
	} >"$state/rabbitmq.conf"
	printf '%s\n' "${DISPATCHER_BROKERS_ERL:-[].}" >"$state/advanced.config"
	# Runs a command as the node's user, in the node's folder, with the node's environment and none of ours.
	cat >"$state/as-node" <<-END
		#!/bin/sh
		cd $node && exec env -i $tag PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=$node LANG=C.UTF-8 \\
			ERL_EPMD_PORT=$epmd ERL_EPMD_ADDRESS=127.0.0.1 \\
			RABBITMQ_NODENAME=dispatcher-$port@localhost \\
			RABBITMQ_CONF_ENV_FILE=$state/none \\
			RABBITMQ_CONFIG_FILE=$state/rabbitmq.conf \\
			RABBITMQ_ADVANCED_CONFIG_FILE=$state/advanced.config \\
			RABBITMQ_ENABLED_PLUGINS_FILE=$state/none \\
			RABBITMQ_MNESIA_BASE=$node/data \\
			RABBITMQ_LOG_BASE=$node/log RABBITMQ_LOGS=- \\
			RABBITMQ_DIST_PORT=$((port + 2)) \\
			RABBITMQ_CTL_DIST_PORT_MIN=$((port + 3)) RABBITMQ_CTL_DIST_PORT_MAX=$((port + 31)) \\
			RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="-kernel inet_dist_use_interface {127,0,0,1} +sbwt none +sbwtdcpu none +sbwtdio none" \\
			RABBITMQ_CTL_ERL_ARGS="-kernel inet_dist_use_interface {127,0,0,1}" \\
			$as "\$@"
	END
	cat >"$state/rabbitmqctl" <<-END
		#!/bin/sh
		exec $state/as-node /usr/lib/rabbitmq/bin/rabbitmqctl "\$@"
	END
	chmod 755 "$state/as-node" "$state/rabbitmqctl"
	chmod 644 "$state/rabbitmq.conf" "$state/advanced.config" "$state/port" # whatever the umask
}

# Prints the processes that carry our tag, except those called $1.
ours() {
	local pid name
	grep -lsxzF -e "$tag" /proc/[0-9]*/environ | cut -d / -f 3 | while read -r pid; do
		name=
		{ read -r name <"/proc/$pid/comm"; } 2>/dev/null || true
		[ "$name" = "${1:-}" ] || echo "$pid"
	done || true
}

# Ends all our processes except those called $1. It uses SIGKILL, because no data outlives stop, and RabbitMQ repairs
# its data when it starts, as after a crash.
kill_ours() {
	local pids deadline=$((SECONDS + 20))
	while mapfile -t pids < <(ours "${1:-}") && [ ${#pids[@]} != 0 ]; do
		[ $SECONDS -lt $deadline ] || die "cannot end the processes ${pids[*]}"
		kill -KILL "${pids[@]}" 2>/dev/null || true
		sleep 0.05
	done
}

start() {
	mkdir -p -- "$dir"
	lock
	choose_version
	if [ -f "$state/port" ] && port=$(cat "$state/port") && [ -n "$(ours)" ] && greets; then
		write_env
		unlock
		return
	fi
	getent --no-addrconfig ahostsv4 localhost | grep '^127\.0\.0\.1 ' >/dev/null ||
		die "localhost does not resolve to 127.0.0.1, RabbitMQ needs that: add the line '127.0.0.1 localhost' to /etc/hosts"
	half=yes
	kill_ours epmd # peers are registered there
	if [ -n "$root" ]; then
		unpack_rabbitmq
	else
		install_rabbitmq
	fi
	write_state
	boot
	write_env
	unlock
}

boot() {
	local pid deadline=$((SECONDS + boot_seconds)) log=$dir/rabbitmq.log
	[ ! -f "$log" ] || mv -f "$log" "$log.1"
	if ! "$state/as-node" epmd -port "$epmd" -names >/dev/null 2>&1; then
		[ "$epmd" = "$port" ] || die "epmd of $DISPATCHER_BROKERS_PEER does not run"
		spawn epmd -port "$port" -address 127.0.0.1
		until "$state/as-node" epmd -port "$port" -names >/dev/null 2>&1; do
			alive "epmd does not start on port $port"
		done
	fi
	spawn "$server"
	until grep -q 'Server startup complete' "$log" && greets; do
		alive "RabbitMQ does not start"
	done
	disown -a # the shell prints nothing when it ends
}

# A session of its own protects the process from the terminal's Ctrl-C.
spawn() {
	setsid "$state/as-node" "$@" </dev/null >>"$log" 2>&1 9<&- &
	pid=$!
}

alive() {
	if ! kill -0 "$pid" 2>/dev/null || [ $SECONDS -ge $deadline ]; then
		tail -n 40 "$log" >&2
		die "$1"
	fi
	sleep 0.1
}

write_env() {
	printf '%s\n' "DISPATCHER_AMQP_CON=amqp://guest:guest@127.0.0.1:$((port + 1))/" "DISPATCHER_RABBITMQCTL=$state/rabbitmqctl" >"$dir/env"
}

stop() {
	lock
	kill_ours
	rm -rf -- "$state" "$dir/env"
	unlock
}

# Stops everything if the script ends before the caller is responsible for stopping it.
undo() {
	local code=$?
	trap '' HUP INT TERM
	if [ -n "$half" ]; then
		{ jobs -p | xargs -r kill -KILL; wait; } 2>/dev/null || true # kills processes that are too young to have the tag
		stop
	fi
	exit "$code"
}

# CMD gets a process group of its own, so that a signal can be passed on to all of its processes. `go test` alone would
# leave test binaries behind. A group that is not the terminal's cannot read from it, so CMD has no input.
run() {
	local name value code
	if [ -z "${DISPATCHER_AMQP_CON:-}" ]; then
		start
		half=yes # even if it was running already
		while IFS="=" read -r name value; do export "$name=$value"; done <"$dir/env"
	fi
	trap 'pass HUP' HUP
	trap 'pass INT' INT
	trap 'pass TERM' TERM
	set -m
	"$@" </dev/null &
	group=$!
	set +m
	[ -z "$caught" ] || pass "$caught"
	while :; do # a signal ends wait early
		code=0
		wait "$group" || code=$?
		kill -0 "$group" 2>/dev/null || break
	done
	[ -z "$caught" ] || kill -KILL -- "-$group" 2>/dev/null || true # kills processes that ignore signals
	exit "$code"
}

pass() {
	caught=$1
	[ -z "$group" ] || kill -s "$1" -- "-$group" 2>/dev/null || true
}

usage() {
	sed -n '/^#  /p' "$0" >&2
	exit 2
}

[ $# -ge 2 ] || usage
verb=$1
half= # not empty = there is something to undo
group= # the process group of CMD
caught= # the last signal received
name_state "$2"
shift 2
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
trap undo EXIT
case $verb in
start)
	if [ -n "${DISPATCHER_AMQP_CON:-}" ]; then
		echo "DISPATCHER_AMQP_CON=$DISPATCHER_AMQP_CON"
		exit
	fi
	start
	cat "$dir/env"
	half=
	;;
stop) stop ;;
run)
	if [ "${1:-}" != -- ] || [ $# -lt 2 ]; then usage; fi
	shift
	run "$@"
	;;
*) usage ;;
esac
