#!/usr/bin/env bash
# Does what the Dockerfile does, where there is no docker: builds from the files that the build context
# holds, then runs the binary as the image's user in a root that holds nothing else and cannot be
# written. Without root's rights the second half is left out, and it says so.
set -euo pipefail
cd "$(dirname "$0")/.."
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
die() { echo "image-check: $*" >&2; exit 1; }

# The context: what git has and .dockerignore leaves. Its lines are plain names, which both read alike.
mkdir "$tmp/context" "$tmp/root"
git ls-files --cached --others --exclude-standard | grep -vEf <(sed -E '/^(#|$)/d; s|[.]|\\.|g; s|^/?|^|; s|/?$|(/\|$)|' .dockerignore) |
	tar -cf - --ignore-failed-read -T - 2>/dev/null | tar -xf - -C "$tmp/context"
build=$(sed -n 's/^RUN \(make build.*\)/\1/p' Dockerfile)
[ -n "$build" ] || die "the Dockerfile does not run make build"
(cd "$tmp/context" && VERSION=1.2.3 REVISION=abc GOFLAGS=-buildvcs=false bash -c "$build") || die "the context does not build"

binary=$tmp/context/bin/lag-monitor
go version -m "$binary" | grep -q 'CGO_ENABLED=0' || die "the binary is not built with CGO_ENABLED=0"
"$binary" version | grep -q 'version 1.2.3 .*revision: abc' || die "the version is not in the binary: $("$binary" version)"
echo "image-check: $(stat -c %s "$binary") bytes"

[ "$(id -u)" = 0 ] || { echo "image-check: not root, so the run in an empty root is left out"; exit 0; }
user=$(sed -n 's/^USER //p' Dockerfile)
cp "$binary" "$tmp/root/lag-monitor"
printf 'probes: {}\n' >"$tmp/root/config.yaml"
chmod 755 "$tmp" "$tmp/root"
chmod -R a-w "$tmp/root"
chroot --userspec="$user" "$tmp/root" /lag-monitor version >/dev/null || die "does not run in an empty root"
# Port 0: any free one. Stopped by its own id.
chroot --userspec="$user" "$tmp/root" /lag-monitor --config.file=/config.yaml --web.listen-address=127.0.0.1:0 2>"$tmp/log" &
pid=$!
for _ in $(seq 100); do
	grep -q 'Listening on' "$tmp/log" && break
	kill -0 "$pid" 2>/dev/null || break
	sleep 0.1
done
kill -TERM "$pid" 2>/dev/null || true
wait "$pid" || { cat "$tmp/log" >&2; die "does not start and stop in an empty root"; }
grep -q 'msg=stopped' "$tmp/log" || { cat "$tmp/log" >&2; die "did not stop by itself"; }
