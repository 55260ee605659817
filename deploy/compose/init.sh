# Sets the example cluster up, in volumes: the offline certificate authority, the keys of three
# nodes, the manifest that all three share, and the identities of the example's people and of
# the proxy. It runs on every `make up` and does what is not done yet.
#
# In production the certificate authority's folder lies on no machine that runs a node, each
# node makes its keys itself, and only node-request.json travels: see docs.
set -eu
umask 077
domain=acme.test

if [ ! -e /ca/offline/seed.json ]; then
  # A run that was stopped half way left a folder that nobody has used yet.
  rm -rf /ca/offline
  hallpass ca init --dir /ca/offline --trust-domain $domain --admin bob,carol,dana --seed /etc/hallpass/seed.yaml
fi
persons=/ca/offline/persons
for name in alice erin; do
  [ -e $persons/$name/cert.pem ] || hallpass identity issue user/$name --root /ca/offline --out $persons/$name
done

if [ ! -e /ca/offline/manifest.json ]; then
  for node in n1 n2 n3; do
    hallpass server init --dir /keys/$node --node $node --trust-domain $domain \
      --raft-address $node:7000 --api-address $node:8443 --dns $node --dns localhost --ip 127.0.0.1
  done
  hallpass ca sign-node --dir /ca/offline /keys/n1/node-request.json /keys/n2/node-request.json /keys/n3/node-request.json
fi
for node in n1 n2 n3; do
  cp /ca/offline/manifest.json /keys/$node/.manifest.json
  mv /keys/$node/.manifest.json /keys/$node/manifest.json
done

# The proxy's identity lives 30 days and is renewed here at every start; the key stays.
hallpass identity issue service/payments --root /ca/offline \
  --dns payments --dns localhost --ip 127.0.0.1 --out /svid
echo "init: done"
