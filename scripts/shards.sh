#!/usr/bin/env bash
# shards.sh PACKAGE N [FLAG...]: runs the tests of a package in N processes at once, each with its share, built with the
# flags. For packages that nearly always wait: in one process their tests wait one after the other, since each looks for
# goroutines that the one before left behind.
set -uo pipefail
pkg=$1 n=$2
shift 2
cd "$(dirname "$0")/../$pkg" || exit
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
go test "$@" -c -o "$tmp/shard.test" . || exit
list=$("$tmp/shard.test" -test.list '^(Test|Fuzz|Example)') || { echo "$list"; exit 1; }
mapfile -t tests < <(grep -E '^(Test|Fuzz|Example)' <<<"$list")
pids=()
for i in $(seq 0 $((n - 1))); do
	run=
	for ((j = i; j < ${#tests[@]}; j += n)); do run+="${run:+|}${tests[j]}"; done
	"$tmp/shard.test" -test.run "^($run)\$" -test.shuffle=on -test.timeout=30m >"$tmp/$i.out" 2>&1 &
	pids+=($!)
done
status=0
for i in "${!pids[@]}"; do
	wait "${pids[i]}" || status=1
	echo "-- $pkg, $((i + 1)) of $n"
	cat "$tmp/$i.out"
done
exit $status
