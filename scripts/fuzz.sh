#!/bin/sh
# Runs every fuzz target of the module in the current folder for the given time. go test accepts one target at a time.
set -eu
out=$(mktemp)
trap 'rm -f "$out"' EXIT

# Up to Go 1.26, go test sometimes reports the end of the time as a failure, with only this text and no failing input
# (golang.org/issue/75804, fixed in 1.27).
only_the_end() {
	grep -q '^ *context deadline exceeded$' "$1" && ! grep -Eq 'Failing input|panic|hung or terminated' "$1"
}

for pkg in $(go list ./...); do
	listed=$(go test -list '^Fuzz' "$pkg") # a separate command, so that a package that does not compile ends the script
	for target in $(echo "$listed" | grep '^Fuzz' || true); do
		code=0
		go test -run '^$' -fuzz "^$target\$" -fuzztime "$1" "$pkg" >"$out" 2>&1 || code=$?
		cat "$out"
		if [ $code != 0 ]; then
			only_the_end "$out" || exit $code
			echo "fuzz.sh: $target has come to the end of its time, no input failed"
		fi
	done
done
