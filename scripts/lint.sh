#!/bin/bash
# All of the style's tools; every one runs, and any finding fails.
set -uo pipefail
cd "$(dirname "$0")/.."
bad=0
step() { # NAME COMMAND...: a command that fails, or prints to stdout where `quiet`, is a finding
  local name=$1; shift
  if ! "$@"; then echo "lint: $name: not clean" >&2; bad=1; fi
}
# Only stdout counts: on a new machine the go command reports its downloads on stderr.
quiet() { local out; out=$("$@"); local rc=$?; [ -z "$out" ] || printf '%s\n' "$out"; [ $rc -eq 0 ] && [ -z "$out" ]; }

none_of() { local what=$1; shift; ! grep -nE "$what" "$@"; }

mapfile -d '' files < <(git ls-files -z --cached --others --exclude-standard '*.go')
here=(); for f in "${files[@]}"; do [ -f "$f" ] && here+=("$f"); done

step gofumpt       quiet .bin/gofumpt -l "${here[@]}"
step 'go vet'      go vet -tags integration,compose,faults,kms,soak ./...
step golangci-lint .bin/golangci-lint run --allow-parallel-runners --build-tags integration,compose,faults,kms,soak ./...
step 'go fix'      quiet go fix -diff ./...
step 'go mod tidy' quiet go mod tidy -diff
step 'tools: go mod tidy' quiet go -C tools mod tidy -diff
for peer in bench/peers/*/; do step "$peer: go mod tidy" quiet go -C "$peer" mod tidy -diff; done
step 'left open'   none_of '\bTODO\b|\bFIXME\b|\bXXX\b|not implemented' "${here[@]}"
step 'skipped'     none_of 't\.Skip(Now|f)?\(|testing\.Short\(\)' "${here[@]}"
exit $bad
