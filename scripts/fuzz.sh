#!/bin/sh
# Runs every fuzz target of the root module for the time given. go test takes one target at a time.
set -eu
cd "$(dirname "$0")/.."
for pkg in $(go list ./...); do
	for target in $(go test -list '^Fuzz' "$pkg" | grep '^Fuzz' || true); do
		go test -run '^$' -fuzz "^$target\$" -fuzztime "$1" "$pkg"
	done
done
