#!/bin/bash
# Installs, on Debian, what test-all, the compose targets and the benchmarks use besides Go.
# With nothing missing it does nothing; CI=true and something that cannot be had is a failure.
set -euo pipefail
declare -A package=(
  [gcc]=gcc [make]=make [git]=git [curl]=curl [openssl]=openssl [nginx]=nginx-light [jq]=jq
  [/bin/busybox]=busybox-static [python3]=python3 [docker-compose]=docker-compose
  [chromium]=chromium [psql]=postgresql [pg_ctlcluster]=postgresql
  [systemd-socket-activate]=systemd [softhsm2-util]=softhsm2 [pkcs11-tool]=opensc
)
missing=()
for program in "${!package[@]}"; do
  command -v "$program" >/dev/null 2>&1 || missing+=("${package[$program]}")
done
if command -v docker >/dev/null 2>&1 && docker compose version >/dev/null 2>&1; then
  kept=(); for p in "${missing[@]}"; do [ "$p" = docker-compose ] || kept+=("$p"); done
  missing=("${kept[@]}")
fi
if [ ${#missing[@]} -eq 0 ]; then echo "deps: everything is here"; exit 0; fi
sudo=; [ "$(id -u)" = 0 ] || sudo=sudo
if ! command -v apt-get >/dev/null; then
  echo "deps: install by hand: ${missing[*]}" >&2; exit 1
fi
echo "deps: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
$sudo apt-get update -q >/dev/null
$sudo apt-get install -q -y --no-install-recommends "${missing[@]}" >/dev/null
for program in "${!package[@]}"; do
  command -v "$program" >/dev/null 2>&1 || [ "$program" = docker-compose ] ||
    { echo "deps: $program is still missing (package ${package[$program]})" >&2; exit 1; }
done
