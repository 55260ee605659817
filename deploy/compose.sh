#!/bin/bash
# up | down | destroy | identities | run ARGS...: the example cluster on docker compose, by
# whichever compose is here (the 2.x plugin or docker-compose 1.29).
set -euo pipefail
cd "$(dirname "$0")/.."

# Compose 1.29 speaks an API version that newer engines refuse, and newer engines' version is
# unknown to older ones: so the engine is asked.
COMPOSE_API_VERSION=$(docker version --format '{{.Server.APIVersion}}') ||
  { echo "compose: no docker engine answers (docker version)" >&2; exit 1; }
export COMPOSE_API_VERSION
export COMPOSE_PROJECT_NAME=${COMPOSE_PROJECT_NAME:-hallpass}
identities=${HALLPASS_FOLDER:-.hallpass}

if docker compose version >/dev/null 2>&1; then compose=(docker compose)
elif command -v docker-compose >/dev/null; then compose=(docker-compose)
else echo "compose: neither docker compose nor docker-compose is here: make deps" >&2; exit 1; fi

port() { local name=COMPOSE_PORT_$1; echo "${!name:-$2}"; }

# container SERVICE: its id, "" if there is none. It asks the engine: each question to compose takes a second.
container() {
  docker ps -a -q --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME" --filter "label=com.docker.compose.service=$1" \
    --filter label=com.docker.compose.oneoff=False
}

# wait_healthy: until every service with a health check is healthy, or two minutes are over.
wait_healthy() {
  local service id state deadline=$((SECONDS + 120))
  for service in n1 n2 n3 upstream proxy; do
    while :; do
      id=$(container "$service")
      state=$([ -n "$id" ] && docker inspect -f '{{.State.Health.Status}}' "$id" || echo missing)
      [ "$state" = healthy ] && break
      if [ $SECONDS -ge $deadline ]; then
        echo "compose: $service is $state; its last lines:" >&2
        "${compose[@]}" logs --tail 20 "$service" >&2
        exit 1
      fi
      sleep 0.5
    done
  done
}

# identities: the example people's folders and the manifest, out of the certificate authority's
# volume, readable by you alone.
copy_identities() {
  local init
  init=$(container init)
  [ -n "$init" ] || { echo "compose: the cluster was never started: make up" >&2; exit 1; }
  mkdir -p -m 0700 "$identities"
  docker cp "$init:/ca/offline/persons/." "$identities"
  docker cp "$init:/ca/offline/manifest.json" "$identities/manifest.json"
  chmod -R go= "$identities"
}

next() {
  cat <<TXT

Three control nodes, a proxy and a service are up. The people's identities are in $identities.
Type, in this folder:

  export PATH="\$PWD/bin:\$PATH"
  export HALLPASS_SERVER=https://localhost:$(port N1 8441),https://localhost:$(port N2 8442),https://localhost:$(port N3 8443)
  ID=\$(hallpass --identity $identities/alice request create payments --allow 'GET /accounts/**' --for 30m --reason 'a first look' --quiet)
  hallpass --identity $identities/bob review approve \$ID --yes
  hallpass --identity $identities/alice grant cert \$ID --out $identities/grant
  curl --cert $identities/grant/cert.pem --key $identities/grant/key.pem --cacert $identities/grant/identity-bundle.pem https://localhost:$(port PROXY 9443)/accounts/42

The same address without the grant, or outside its scope, says what to ask for. Then:
  make down      stops it and keeps its volumes
  make destroy   removes it
TXT
}

case ${1:-} in
  up)
    "${compose[@]}" up -d --remove-orphans
    wait_healthy
    copy_identities
    next
    ;;
  down) "${compose[@]}" down --remove-orphans ;;
  destroy)
    "${compose[@]}" down --volumes --remove-orphans
    [ ! -f "$identities/manifest.json" ] || rm -rf "$identities"
    ;;
  identities) copy_identities ;;
  run) shift; "${compose[@]}" "$@" ;;
  *) echo "usage: deploy/compose.sh up|down|destroy|identities|run ARGS..." >&2; exit 2 ;;
esac
