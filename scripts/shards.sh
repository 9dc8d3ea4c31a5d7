#!/usr/bin/env bash
# shards.sh N [FLAG...]: runs the tests of internal/conform in N processes at once, each with its share, built with the
# flags. Nearly all of their time is waiting, and in one process they wait one after the other, since each looks for
# goroutines that the one before left behind.
set -uo pipefail
n=$1
shift
cd "$(dirname "$0")/../internal/conform" || exit
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
go test "$@" -c -o "$tmp/conform.test" . || exit
list=$("$tmp/conform.test" -test.list '^Test') || { echo "$list"; exit 1; }
mapfile -t tests < <(grep '^Test' <<<"$list" | grep -v '^TestConformance$')
pids=()
for i in $(seq 0 $((n - 1))); do
	# TestConformance takes its share of the transports by itself.
	run='^(TestConformance'
	for ((j = i; j < ${#tests[@]}; j += n)); do run+="|${tests[j]}"; done
	"$tmp/conform.test" -test.run "$run)\$" -test.shuffle=on -test.timeout=30m -shard "$i/$n" >"$tmp/$i.out" 2>&1 &
	pids+=($!)
done
status=0
for i in "${!pids[@]}"; do
	wait "${pids[i]}" || status=1
	echo "-- internal/conform, $((i + 1)) of $n"
	cat "$tmp/$i.out"
done
exit $status
