package sim

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"path/filepath"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallpass/hallpass/ca"
)

const trustDomain = "acme.test"

// policyText: payments needs one owner, ledger an owner and someone of security, wiki nobody;
// who breaks the glass at ledger gets it at once, and somebody of security looks at that afterwards.
const policyText = `version: 3
services: [{name: payments}, {name: ledger}, {name: wiki}]
rules:
  - name: payments
    service: payments
    requesters: [group:engineers]
    permissions: ["* /**", "tcp"]
    require: [{group: owners, approvals: 1}]
    max_duration: 1h
    certificate_ttl: 1m
  - name: ledger
    service: ledger
    requesters: [group:engineers]
    permissions: ["* /**", "grpc bank.Ledger/*"]
    require: [{group: owners, approvals: 1}, {group: security, approvals: 1}]
    max_duration: 1h
    certificate_ttl: 2m
    break_glass: {groups: [engineers], max_duration: 5m, review: [security], review_within: 1h}
  - name: wiki
    service: wiki
    requesters: [group:engineers]
    permissions: ["GET /**"]
    auto: true
    max_duration: 1h
    certificate_ttl: 5m
`

// World is what all runs start from: a certificate authority, three nodes' keys, and people with their identities. It is
// made once, and never written to after.
type World struct {
	dir      string
	manifest ca.Manifest
	roots    *x509.CertPool
	people   map[string]*tls.Certificate
}

// epoch is when a bubble of testing/synctest begins.
func epoch() time.Time { return time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) }

func nodeIDs() []string   { return []string{"n1", "n2", "n3"} }
func engineers() []string { return []string{"alice", "amir", "anna"} }
func owners() []string    { return []string{"bob", "bea"} }
func security() []string  { return []string{"sam", "sue"} }
func admins() []string    { return []string{"carol", "dana", "erin"} }

func apiAddress(id string) address { return address(id + "." + trustDomain + ":8443") }

// NewWorld makes a World in dir.
func NewWorld(dir string) (*World, error) {
	w := &World{dir: dir, roots: x509.NewCertPool(), people: map[string]*tls.Certificate{}}
	td, err := spiffeid.TrustDomainFromString(trustDomain)
	if err != nil {
		return nil, err
	}
	offline := filepath.Join(dir, "offline")
	// Two hours old: a node whose clock goes back by an hour still takes everybody for who they are, so that a call
	// reaches what is to be tested.
	made := epoch().Add(-2 * time.Hour)
	if err := ca.Init(offline, ca.InitOptions{TrustDomain: td, Admins: admins(), Seed: seedOf(), Dev: true, Now: made}); err != nil {
		return nil, err
	}
	var requests []ca.NodeRequest
	for _, id := range nodeIDs() {
		r, err := ca.NewNode(w.keys(id), ca.NodeOptions{
			ID: id, TrustDomain: td, APIAddress: string(apiAddress(id)), RaftAddress: id + "." + trustDomain + ":8444",
		})
		if err != nil {
			return nil, err
		}
		requests = append(requests, r)
	}
	if w.manifest, err = ca.SignNodes(offline, requests, ca.SignOptions{Now: made}); err != nil {
		return nil, err
	}
	for _, c := range w.manifest.IdentityRoots {
		w.roots.AddCert(c)
	}
	for _, group := range [][]string{engineers(), owners(), security(), admins()} {
		for _, name := range group {
			if w.people[name], err = identity(offline, td, name, made); err != nil {
				return nil, err
			}
		}
	}
	return w, nil
}

func seedOf() *ca.Seed {
	s := &ca.Seed{
		Groups: []ca.Group{
			{Name: "engineers", Members: engineers()}, {Name: "owners", Members: owners()}, {Name: "security", Members: security()},
		},
		Policy: policyText,
	}
	for _, group := range [][]string{engineers(), owners(), security()} {
		for _, name := range group {
			s.Persons = append(s.Persons, ca.Person{Name: name, IDs: []string{personID(name)}})
		}
	}
	return s
}

func personID(name string) string { return "spiffe://" + trustDomain + "/user/" + name }

func identity(offline string, td spiffeid.TrustDomain, name string, made time.Time) (*tls.Certificate, error) {
	key, err := ca.GenerateKey()
	if err != nil {
		return nil, err
	}
	id, err := spiffeid.FromPath(td, "/user/"+name)
	if err != nil {
		return nil, err
	}
	chain, err := ca.IssueOffline(offline, ca.IdentitySpec{ID: id, PublicKey: key.Public(), Now: made, TTL: 100 * time.Hour})
	if err != nil {
		return nil, fmt.Errorf("identity of %s: %w", name, err)
	}
	c := &tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, x := range chain {
		c.Certificate = append(c.Certificate, x.Raw)
	}
	return c, nil
}

func (w *World) keys(id string) string { return filepath.Join(w.dir, id) }
