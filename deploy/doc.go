// Package deploy holds the example cluster on docker compose, and the tests that drive it.
//
// The pieces are docker-compose.yml at the top of the module, images.sh, which makes the images
// from what is on this machine, compose.sh, which `make up`, `down` and `destroy` run, and
// compose/, what goes into the images. Nothing is pulled: the nodes and the proxy are our one
// static binary on an empty root, the service behind the proxy is busybox httpd.
//
//	init ─► volumes: offline CA, keys of n1 n2 n3, the proxy's identity
//	          │ done
//	          ├─► n1 n2 n3 ──feed──► proxy ──► upstream
//	          └─► folders of the example people, copied to the host by compose.sh
//
// Every container runs as an ordinary user on a read-only root without capabilities, publishes
// on loopback only, and is healthy when `hallpass health` says so. The upstream is on a network
// of its own that has no way out and no way in but the proxy.
//
// `make test-compose` breaks it: nodes killed, cut off, restarted, replaced, all disks lost, a quorum lost.
// An operator's part is typed as docs/operations.md has it, block by block, with a container for
// each of its machines (machines_test.go); what the cluster has acknowledged meanwhile is kept in an
// internal/ledger and asked for afterwards.
package deploy
