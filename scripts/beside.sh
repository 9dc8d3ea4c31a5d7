#!/usr/bin/env bash
# beside.sh BACK FRONT: runs the command BACK with the lowest priority while FRONT runs, shows what BACK has
# said when both have ended, and fails when either does. For BACK that computes and FRONT that mostly waits; with
# NICE=0 for two that mostly wait.
set -uo pipefail
out=$(mktemp)
nice -n "${NICE:-19}" bash -euo pipefail -c "$1" >"$out" 2>&1 &
back=$!
trap 'kill "$back" 2>/dev/null; rm -f "$out"' EXIT
bash -euo pipefail -c "$2"
front=$?
wait "$back"
status=$?
echo "-- meanwhile: $1"
cat "$out"
if [ $status -ne 0 ] || [ $front -ne 0 ]; then
	echo "failed: $([ $front -eq 0 ] || echo "$2 ")$([ $status -eq 0 ] || echo "$1")" >&2
	exit 1
fi
