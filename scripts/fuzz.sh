#!/usr/bin/env bash
# fuzz.sh TIME: runs every fuzz target of the module for that time. A crash leaves its input under the
# package's testdata/fuzz: it belongs into the commit that cures it.
set -euo pipefail
cd "$(dirname "$0")/.."
while IFS=: read -r file target; do
	dir=$(dirname "$file")
	echo "-- $dir $target"
	go test -run '^$' -fuzz "^$target\$" -fuzztime "$1" -fuzzminimizetime 1s "./$dir"
done < <(git grep -oE "func Fuzz[A-Za-z0-9_]*" -- "*_test.go" | sed "s|:func |:|")
