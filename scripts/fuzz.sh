#!/bin/bash
# Runs every fuzz target of the module for FUZZTIME each, or those whose name ONLY is a pattern of; LANES at a time, which are
# as many as there are cores unless it says otherwise, with one worker each. A package is built once, and not for each of its
# targets. Inputs are made smaller in a few steps at the most: by default a minute goes into each that reaches new code. A
# crasher stays in the package's testdata/fuzz, where `go test` replays it from then on.
set -euo pipefail
cd "$(dirname "$0")/.."
export FUZZTIME=${FUZZTIME:-20s}
BUILT=$(mktemp -d)
CORPUS=$(go env GOCACHE)/fuzz/$(go list -m)
export BUILT CORPUS
trap 'rm -rf "$BUILT"' EXIT

# build DIR: the package's tests, instrumented as `go test -fuzz` has them.
build() { go test -c -fuzz=. -o "$BUILT/$1.test" "$1"; }

# When FUZZTIME ends while a worker is being asked, the testing package now and then calls that a failure, with
# these words and no input to show for it. That target runs again; a crasher never does.
run() {
  local out tries
  out=$(mktemp)
  trap 'rm -f "$out"' RETURN
  for tries in 1 2 3; do
    if (cd "$1" && "$BUILT/$1.test" -test.run '^$' -test.fuzz "^$2\$" -test.parallel 1 -test.fuzztime "$FUZZTIME" \
      -test.fuzzminimizetime 10x -test.fuzzcachedir "$CORPUS/$1") >"$out" 2>&1; then
      echo "fuzz $1 $2 $FUZZTIME: $(grep -o 'execs: [0-9]*' "$out" | tail -1)"
      return 0
    fi
    grep -q '^    context deadline exceeded$' "$out" && ! grep -q 'Failing input' "$out" || break
  done
  echo "fuzz $1 $2: not clean"
  cat "$out"
  return 1
}
export -f build run
targets=$(go run ./internal/mutants -list | while read -r dir name; do
  if [[ -z ${ONLY:-} || $name =~ $ONLY ]]; then echo "$dir $name"; fi
done)
[ -n "$targets" ] || { echo "fuzz: no target found" >&2; exit 1; }
cut -d' ' -f1 <<<"$targets" | sort -u | xargs -I{} bash -c 'build {}'
xargs -P "${LANES:-$(nproc)}" -L 1 bash -c 'run "$@"' run <<<"$targets" || { echo "fuzz: a target is not clean" >&2; exit 1; }
echo "fuzz: $(wc -l <<<"$targets") targets, no crasher"
