#!/bin/sh
# Runs every fuzz target for the time given. go test takes one target at a time.
set -eu
cd "$(dirname "$0")/.."
for pkg in $(go list ./...); do
	listed=$(go test -list '^Fuzz' "$pkg") # by itself, so that a package that does not compile ends the script
	for target in $(echo "$listed" | grep '^Fuzz' || true); do
		go test -run '^$' -fuzz "^$target\$" -fuzztime "$1" "$pkg"
	done
done
