#!/bin/bash
# Runs every fuzz target of the module for FUZZTIME each, or those whose name ONLY is a pattern of. Inputs are made
# smaller in a few steps at the most: by default a minute goes into each that reaches new code. A crasher stays in the package's
# testdata/fuzz, where `go test` replays it from then on.
set -euo pipefail
cd "$(dirname "$0")/.."
FUZZTIME=${FUZZTIME:-20s}
# When FUZZTIME ends while a worker is being asked, go test now and then calls that a failure, with
# these words and no input to show for it. That target runs again; a crasher never does.
run() {
  local out tries
  out=$(mktemp)
  for tries in 1 2 3; do
    if go test -run '^$' -fuzz "^$1\$" -fuzztime "$FUZZTIME" -fuzzminimizetime 10x "$2" 2>&1 | tee "$out"; then rm -f "$out"; return 0; fi
    grep -q '^    context deadline exceeded$' "$out" && ! grep -q 'Failing input' "$out" || break
  done
  rm -f "$out"; return 1
}
count=0
targets=$(go run ./internal/mutants -list)
while read -r dir name; do
  [[ -z ${ONLY:-} || $name =~ $ONLY ]] || continue
  echo "fuzz $dir $name $FUZZTIME"
  run "$name" "$dir"
  count=$((count + 1))
done <<<"$targets"
[ "$count" -gt 0 ] || { echo "fuzz: no target found" >&2; exit 1; }
echo "fuzz: $count targets, no crasher"
