package demo

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/hallpass/hallpass/internal/loopback"
)

// The people of the demo. Alice is an engineer who owns payments too, so that
// it is her own request that she may not approve, not a group she lacks.
const (
	trustDomain = "acme.test"
	service     = "payments"

	seedText = `# Who is who when the cluster starts. From then on all of this changes only by a
# change that two admins other than its author approve.
persons:
  - {name: alice, ids: ["spiffe://acme.test/user/alice", "spiffe://acme.test/user/alice-phone"]}
  - {name: bob, ids: ["spiffe://acme.test/user/bob"]}
  - {name: carol, ids: ["spiffe://acme.test/user/carol"]}
  - {name: dana, ids: ["spiffe://acme.test/user/dana"]}
groups:
  - {name: engineers, members: [alice, bob]}
  - {name: payments-owners, members: [alice, bob]}
policy: |
  version: 1
  rules:
    - name: payments-read
      service: payments
      requesters: [group:engineers]
      permissions: ["GET,HEAD /accounts/**", "GET /stream"]
      require: [{group: payments-owners, approvals: 1}]
      max_duration: 1h
      certificate_ttl: 5m
    - name: payments-refunds
      service: payments
      requesters: [group:engineers]
      permissions: ["POST /refunds/*"]
      require: [{group: payments-owners, approvals: 1}, {group: admins, approvals: 1}]
      max_duration: 15m
`
)

var (
	nodes   = [...]string{"n1", "n2", "n3"}                 //nolint:gochecknoglobals // constant
	admins  = [...]string{"bob", "carol", "dana"}           //nolint:gochecknoglobals // constant
	persons = [...]string{"user/alice", "user/alice-phone"} //nolint:gochecknoglobals // constant
)

// place is a folder that holds a cluster: its offline roots, its nodes' keys
// and data, the proxy's identity, and the addresses that were free when it was
// made.
type place struct {
	dir      string
	binary   string
	logStore string            // of the nodes; empty: their default
	unpaced  bool              // see Options
	api      map[string]string // node → host:port
	raft     map[string]string
	admin    map[string]string
	proxy    string
	watch    string // the proxy's admin address
	upstream string
	kept     []*loopback.Reservation // of all these addresses: a killed node comes back on its own
}

// newPlace picks free loopback ports and writes the configuration files.
func newPlace(dir, binary string, o Options) (*place, error) {
	p := &place{
		dir: dir, binary: binary, logStore: o.LogStore, unpaced: o.Unpaced,
		api: make(map[string]string), raft: make(map[string]string), admin: make(map[string]string),
	}
	ports, err := p.keep(3*len(nodes)+3, o.Again...)
	if err != nil {
		return nil, err
	}
	next := func() string { address := ports[0]; ports = ports[1:]; return address }
	for _, n := range nodes {
		p.api[n], p.raft[n], p.admin[n] = next(), next(), next()
	}
	p.proxy, p.watch, p.upstream = next(), next(), next()
	files := map[string]string{"seed.yaml": cmp.Or(o.Seed, seedText), "proxy.yaml": p.proxyConfig()}
	for _, n := range nodes {
		files[n+".yaml"] = p.serverConfig(n)
	}
	for name, text := range files {
		if err := os.WriteFile(p.path(name), []byte(text), 0o600); err != nil {
			p.release()
			return nil, err
		}
	}
	if o.Again != nil {
		if err := p.linkAdmins(); err != nil {
			p.release()
			return nil, err
		}
	}
	return p, nil
}

func (p *place) path(elem ...string) string {
	return filepath.Join(append([]string{p.dir}, elem...)...)
}

// Servers are the URLs of the control API.
func (p *place) Servers() []string {
	urls := make([]string, len(nodes))
	for i, n := range nodes {
		urls[i] = "https://" + p.api[n]
	}
	return urls
}

// ProxyAddress is where the proxy of payments listens.
func (p *place) ProxyAddress() string { return p.proxy }

// Identity is the folder of a person's or the service's identity.
func (p *place) Identity(name string) string { return p.path("people", name) }

func (p *place) serverConfig(node string) string {
	logStore := ""
	if p.logStore != "" {
		logStore = "log_store: " + p.logStore + "\n"
	}
	limits := ""
	if p.unpaced {
		limits = "limits: {reads_per_second: 1000000, writes_per_second: 1000000, writes_per_caller: 1000000, writes: 1000000}\n"
	}
	return fmt.Sprintf(`node: %s
data_dir: %s
keys_dir: %s
manifest: %s
listen: {api: %q, raft: %q, admin: %q}
dev: true
%s%s`, node, p.path(node, "data"), p.path(node, "keys"), p.path("offline", "manifest.json"),
		p.api[node], p.raft[node], p.admin[node], logStore, limits)
}

func (p *place) proxyConfig() string {
	quoted := make([]string, 0, len(nodes))
	for _, url := range p.Servers() {
		quoted = append(quoted, strconv.Quote(url))
	}
	id := p.path("people", service)
	return fmt.Sprintf(`service: %s
listen: %q
protocol: http
hosts: [localhost, 127.0.0.1]
upstream: "http://%s"
trust_domain: %s
grant_trust_domain: grants.%s
certificate: %s/cert.pem
key: %s/key.pem
identity_bundle: %s/identity-bundle.pem
grants_bundle: %s/grants-bundle.pem
revocation: {servers: [%s], state_file: %q}
access_log: {path: %q}
admin: %q
drain: {before_expiry: 2s, shutdown: 5s}
`, service, p.proxy, p.upstream, trustDomain, trustDomain, id, id, id, id,
		strings.Join(quoted, ", "), p.path("proxy", "revocations.json"), p.path("proxy", "access.jsonl"), p.watch)
}

// found makes the offline roots, each node's keys and the manifest.
func (p *place) found(ctx context.Context) error {
	for _, dir := range []string{"people", "proxy"} {
		if err := os.MkdirAll(p.path(dir), 0o700); err != nil {
			return err
		}
	}
	steps := [][]string{{
		"ca", "init", "--dir", p.path("offline"), "--trust-domain", trustDomain, "--dev",
		"--admin", strings.Join(admins[:], ","), "--seed", p.path("seed.yaml"),
	}}
	sign := []string{"ca", "sign-node", "--dir", p.path("offline")}
	for _, n := range nodes {
		host, _, err := net.SplitHostPort(p.api[n])
		if err != nil {
			return err
		}
		steps = append(steps, []string{
			"server", "init", "--dir", p.path(n, "keys"), "--node", n, "--trust-domain", trustDomain,
			"--raft-address", p.raft[n], "--api-address", p.api[n], "--ip", host, "--dns", "localhost",
		})
		sign = append(sign, p.path(n, "keys", "node-request.json"))
	}
	steps = append(steps, sign)
	for _, id := range persons {
		name := strings.TrimPrefix(id, "user/")
		steps = append(steps, []string{"identity", "issue", id, "--root", p.path("offline"), "--out", p.Identity(name)})
	}
	for _, args := range steps {
		if _, err := p.must(ctx, "", args...); err != nil {
			return err
		}
	}
	return p.linkAdmins()
}

// linkAdmins has the admins' identities, which ca init made, beside the others'.
func (p *place) linkAdmins() error {
	for _, name := range admins {
		if err := os.Symlink(p.path("offline", "persons", name), p.Identity(name)); err != nil {
			return err
		}
	}
	return nil
}

// keep takes n loopback addresses that nobody else gets before release: any, or
// those that are named.
func (p *place) keep(n int, again ...string) ([]string, error) {
	var addresses []string
	for i := range n {
		var kept *loopback.Reservation
		var err error
		if i < len(again) {
			kept, err = loopback.Again(again[i])
		} else {
			kept, err = loopback.Reserve()
		}
		if err != nil {
			p.release()
			return nil, err
		}
		p.kept = append(p.kept, kept)
		addresses = append(addresses, kept.Address())
	}
	return addresses, nil
}

// release gives the addresses back.
func (p *place) release() {
	for _, kept := range p.kept {
		_ = kept.Release() // the end of the process does it too
	}
	p.kept = nil
}
