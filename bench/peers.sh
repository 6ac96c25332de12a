#!/usr/bin/env bash
# Starts the servers of the libraries that bench compares: a Redis for asynq and a PostgreSQL for River. They listen on
# free ports of 127.0.0.1, beside any others.
#
#   peers.sh CMD…   starts them, runs CMD, stops them, and exits as CMD did
#
#   DISPATCHER_BENCH_REDIS=HOST:PORT   for CMD; if it is set already, that Redis is used
#   DISPATCHER_BENCH_POSTGRES=URL      likewise, a database whose owner the user is
#
# As root it installs what is missing: Debian's redis-server and postgresql. A server that cannot be had is not there for
# CMD, and the script says so.
set -euo pipefail

say() { echo "peers.sh: $*" >&2; }
die() { say "$*"; exit 1; }

. "$(dirname "$0")/../scripts/packages.sh"

free_port() {
	local port
	while :; do
		port=$((15000 + RANDOM % 5000)) # below those of brokers.sh and of the kernel
		(exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
	done
	echo "$port"
}

# Runs a server as user $1. Root uses the account of the package, since PostgreSQL refuses to run as root.
as() {
	local user=$1
	shift
	if [ "$(id -u)" = 0 ]; then
		exec setpriv --reuid="$user" --regid="$user" --clear-groups env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 "$@"
	fi
	exec "$@"
}

wait_for() { # wait_for PID NAME CHECK…
	local pid=$1 name=$2 deadline=$((SECONDS + 30))
	shift 2
	until "$@" >/dev/null 2>&1; do
		if ! kill -0 "$pid" 2>/dev/null || [ $SECONDS -ge $deadline ]; then
			say "$name does not start: $(tail -n 5 "$dir/$name.log")"
			return 1
		fi
		sleep 0.1
	done
}

# Every command of a function in a condition runs on after an error, so each says what to do.
start_redis() {
	command -v redis-server >/dev/null || (install_packages redis-server) || return 1
	local port
	port=$(free_port)
	make_folder redis
	(as redis redis-server --port "$port" --bind 127.0.0.1 --dir "$dir/redis" --save '' \
		--appendonly yes --appendfsync everysec >"$dir/redis.log" 2>&1 </dev/null) &
	pids+=($!)
	wait_for $! redis redis-cli -p "$port" ping || return 1
	export DISPATCHER_BENCH_REDIS=127.0.0.1:$port
}

start_postgres() {
	local bin port
	bin=$(postgres_bin) || (install_packages postgresql) || return 1
	bin=$(postgres_bin) || return 1
	port=$(free_port)
	make_folder postgres
	(as postgres "$bin/initdb" -D "$dir/postgres/data" -U bench -A trust --no-sync >"$dir/postgres.log" 2>&1 </dev/null) || {
		say "initdb failed: $(tail -n 5 "$dir/postgres.log")"
		return 1
	}
	(as postgres "$bin/postgres" -D "$dir/postgres/data" -p "$port" -h 127.0.0.1 -k '' >>"$dir/postgres.log" 2>&1 </dev/null) &
	pids+=($!)
	wait_for $! postgres "$bin/pg_isready" -h 127.0.0.1 -p "$port" -U bench || return 1
	export DISPATCHER_BENCH_POSTGRES="postgres://bench@127.0.0.1:$port/postgres?sslmode=disable"
}

postgres_bin() {
	local newest
	newest=$(printf '%s\n' /usr/lib/postgresql/*/bin | sort -V | tail -n 1)
	[ -x "$newest/postgres" ] && echo "$newest"
}

make_folder() {
	mkdir "$dir/$1"
	[ "$(id -u)" != 0 ] || chown "$1:" "$dir/$1"
}

stop() {
	local code=$?
	trap '' HUP INT TERM
	for pid in "${pids[@]}"; do
		kill -INT "$pid" 2>/dev/null || true # PostgreSQL's fast shutdown
	done
	wait "${pids[@]}" 2>/dev/null || true
	rm -rf -- "$dir"
	exit "$code"
}

[ $# -ge 1 ] || { sed -n '/^#  /p' "$0" >&2; exit 2; }
dir=$(mktemp -d /tmp/dispatcher-bench-XXXXXX)
chmod 755 "$dir"
pids=()
trap stop EXIT
[ -n "${DISPATCHER_BENCH_REDIS:-}" ] || start_redis || say "there is no Redis, so asynq is not measured"
[ -n "${DISPATCHER_BENCH_POSTGRES:-}" ] || start_postgres || say "there is no PostgreSQL, so River is not measured"
"$@"
