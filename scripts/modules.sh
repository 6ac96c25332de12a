#!/bin/sh
# Runs a command in the folder of every Go module of the project, because go's ./... ends at a nested go.mod. Stops at
# the first failure.
set -eu
cd "$(dirname "$0")/.."
find . -name go.mod -not -path '*/.*' -not -path '*/testdata/*' | sort | while read -r mod; do
	(cd "$(dirname "$mod")" && "$@")
done
