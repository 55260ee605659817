#!/bin/bash
# Makes the images that docker-compose.yml names, from what is on this machine: nothing is pulled.
#
#   hallpass:local            the static binary and its configuration files, nothing else
#   hallpass-init:local       the same with busybox's shell, to set a cluster up once
#   hallpass-upstream:local   busybox httpd: a service that we did not write and that knows nothing of us
#
# The folders that volumes are mounted on exist in the image with the right owner, because a new
# volume takes its owner from there.
set -euo pipefail
cd "$(dirname "$0")/.."
user=65532

busybox=$(command -v busybox || true)
if [ -z "$busybox" ] || ! "$busybox" httpd --help >/dev/null 2>&1; then
  echo "images: needs busybox with httpd (Debian: busybox-static): make deps" >&2; exit 1
fi
if [ -n "$(ldd "$busybox" 2>/dev/null | grep '=>' || true)" ]; then
  echo "images: $busybox is not static (Debian: busybox-static): make deps" >&2; exit 1
fi

stage=.image
rm -rf "$stage"
mkdir -p "$stage"

# image NAME OWNED-FOLDERS DOCKER-CHANGE...: imports $stage/NAME as NAME:local, unless it is there.
image() {
  local name=$1 folders=$2; shift 2
  local root=$stage/$name tar=$stage/$name.tar changes=() sum folder
  chmod -R u=rwX,go=rX "$root"
  local fixed=(--sort=name --mtime=@0 --numeric-owner --format=gnu)
  tar -C "$root" "${fixed[@]}" --owner=0 --group=0 -cf "$tar" .
  mkdir -p "$stage/owned"
  for folder in $folders; do
    mkdir -p -m 0700 "$stage/owned/$name/$folder"
    tar -C "$stage/owned/$name" "${fixed[@]}" --owner=$user --group=$user --no-recursion -rf "$tar" "$folder"
  done
  for change in "$@"; do changes+=(--change "$change"); done
  sum=$(cat "$tar" <(printf '%s\n' "$@") | sha256sum | cut -d' ' -f1)
  if [ "$(docker image inspect -f '{{.Comment}}' "$name:local" 2>/dev/null)" = "$sum" ]; then
    echo "image $name:local is up to date"
    return
  fi
  local old
  old=$(docker image inspect -f '{{.Id}}' "$name:local" 2>/dev/null || true)
  docker import --message "$sum" "${changes[@]}" "$tar" "$name:local" >/dev/null
  # What a running container still uses stays until that container is gone.
  [ -z "$old" ] || docker image rm "$old" >/dev/null 2>&1 || true
  echo "image $name:local made"
}

install -D -m 0755 bin/hallpass "$stage/hallpass/bin/hallpass"
install -D -m 0644 -t "$stage/hallpass/etc/hallpass" deploy/compose/server.yaml deploy/compose/proxy.yaml
image hallpass "keys data svid" "USER $user:$user" 'ENTRYPOINT ["/bin/hallpass"]'

install -D -m 0755 bin/hallpass "$stage/hallpass-init/bin/hallpass"
install -D -m 0755 "$busybox" "$stage/hallpass-init/bin/busybox"
ln -s busybox "$stage/hallpass-init/bin/sh"
install -D -m 0644 -t "$stage/hallpass-init/etc/hallpass" deploy/compose/init.sh deploy/compose/seed.yaml
image hallpass-init "ca keys keys/n1 keys/n2 keys/n3 svid" "USER $user:$user" 'ENV PATH=/bin' 'ENTRYPOINT ["/bin/sh", "/etc/hallpass/init.sh"]'

install -D -m 0755 "$busybox" "$stage/hallpass-upstream/bin/busybox"
mkdir -p "$stage/hallpass-upstream/www"
cp -r deploy/compose/www/. "$stage/hallpass-upstream/www/"
image hallpass-upstream "" "USER $user:$user" 'ENTRYPOINT ["/bin/busybox", "httpd", "-f", "-p", "8080", "-h", "/www"]'

rm -rf "$stage"
