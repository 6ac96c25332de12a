#!/bin/sh
# Installs what `go test -race` needs besides Go: a C compiler and the headers of the C library, from Debian's packages.
set -eu
if command -v gcc >/dev/null && echo '#include <stdlib.h>' | gcc -E - >/dev/null 2>&1; then
	exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
	echo "the race detector needs gcc and libc6-dev (or your system's equivalents): please install them" >&2
	exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -y -q --no-install-recommends gcc libc6-dev
