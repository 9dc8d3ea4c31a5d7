#!/usr/bin/env bash
# nested.sh COMMAND: runs the command in the directory of each module inside this one. The developer
# tools are a module without code.
set -euo pipefail
cd "$(dirname "$0")/.."
while IFS= read -r mod; do
	echo "-- ${mod%/go.mod}"
	(cd "$(dirname "$mod")" && bash -euo pipefail -c "$1")
done < <(git ls-files '*/go.mod' | grep -v '^tools/')
