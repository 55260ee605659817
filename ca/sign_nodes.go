package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// SignOptions says what `ca sign-node` puts into the issuers.
type SignOptions struct {
	// DNSDomains are the domains under which the identity issuers may name
	// hosts; nil means the trust domain and "localhost".
	DNSDomains []string
	// IPRanges are the addresses that they may name; nil means loopback.
	IPRanges []*net.IPNet
	// Replace signs again although there is a manifest: new issuers, 90 more
	// days, and whatever the requests changed.
	Replace bool
	// Add signs the nodes of the requests alone, new ones and such as are in the
	// manifest already, and leaves the others as they are.
	Add bool
	// Drop takes these nodes out of the manifest.
	Drop []string
	Life time.Duration // of the certificates; zero means IssuerLife, which is the most
	Now  time.Time     // zero means the clock's
}

// SignNodes makes the members of a cluster out of their requests: it checks the
// proof of every key, signs for each node an issuer of identities, an issuer of
// grants and the certificate of its API, and writes and returns the manifest,
// which goes to every node. dir is the offline folder.
//
// Running it again with the same requests returns the manifest that is there.
// With other requests it refuses, unless told to replace it, add to it or drop
// nodes from it; that makes a manifest of the next sequence number.
func SignNodes(dir string, requests []NodeRequest, o SignOptions) (Manifest, error) {
	off, err := openOffline(dir)
	if err != nil {
		return Manifest{}, err
	}
	if o, err = o.checked(off.identityTD); err != nil {
		return Manifest{}, err
	}
	requests = slices.Clone(requests)
	slices.SortFunc(requests, func(a, b NodeRequest) int { return strings.Compare(a.ID, b.ID) })

	path := filepath.Join(dir, ManifestFile)
	old, err := LoadManifest(path)
	switch there := !errors.Is(err, fs.ErrNotExist); {
	case there && err != nil:
		// Without its sequence number the next one is not known, and a cluster
		// takes no manifest that is not newer than its own.
		return Manifest{}, err
	case there && !o.Replace && !o.edits():
		return old, old.covers(requests, o)
	case !there && o.edits():
		return Manifest{}, fmt.Errorf("%w: there is no manifest in %s to add nodes to or drop them from", ErrInvalid, dir)
	}
	m := Manifest{
		Cluster:          ClusterID(off.identity.cert, off.grant.cert),
		Sequence:         old.Sequence + 1,
		TrustDomain:      off.identityTD,
		GrantTrustDomain: off.grants,
		Dev:              isDev(off.identity.cert),
		IdentityRoots:    []*x509.Certificate{off.identity.cert},
		GrantRoots:       []*x509.Certificate{off.grant.cert},
		Persons:          off.seed.Persons,
		Groups:           off.seed.Groups,
		Policy:           off.seed.Policy,
	}
	if m.Nodes, err = old.without(requests, o); err != nil {
		return Manifest{}, err
	}
	for _, r := range requests {
		entry, err := off.signNode(r, o)
		if err != nil {
			return Manifest{}, fmt.Errorf("node %q: %w", r.ID, err)
		}
		m.Nodes = append(m.Nodes, entry)
	}
	slices.SortFunc(m.Nodes, func(a, b NodeEntry) int { return strings.Compare(a.ID, b.ID) })
	return off.seal(m, path, o.Now)
}

// edits reports whether nodes of the manifest that is there stay in it.
func (o SignOptions) edits() bool { return o.Add || len(o.Drop) > 0 }

// without returns the nodes that stay as they are.
func (m Manifest) without(requests []NodeRequest, o SignOptions) ([]NodeEntry, error) {
	if !o.edits() {
		return nil, nil
	}
	for _, id := range o.Drop {
		if _, ok := m.Node(id); !ok {
			return nil, fmt.Errorf("%w: there is no node %q to drop", ErrInvalid, id)
		}
	}
	return slices.DeleteFunc(slices.Clone(m.Nodes), func(n NodeEntry) bool {
		return slices.Contains(o.Drop, n.ID) || slices.ContainsFunc(requests, func(r NodeRequest) bool { return r.ID == n.ID })
	}), nil
}

// seal signs a manifest, checks that it loads, and writes it.
func (o *offline) seal(m Manifest, path string, now time.Time) (Manifest, error) {
	statement, err := m.Statement()
	if err != nil {
		return Manifest{}, err
	}
	if m.Signature, err = o.signStatement("manifest of "+m.Cluster, statement, now); err != nil {
		return Manifest{}, err
	}
	text, err := m.Encode()
	if err != nil {
		return Manifest{}, err
	}
	if m, err = ParseManifest(text); err != nil {
		return Manifest{}, err
	}
	return m, writeFile(path, text, publicMode)
}

func (o SignOptions) checked(td spiffeid.TrustDomain) (SignOptions, error) {
	if o.Now.IsZero() {
		o.Now = time.Now()
	}
	if o.Life == 0 {
		o.Life = IssuerLife
	}
	if o.Life < 0 || o.Life > IssuerLife {
		return o, fmt.Errorf("%w: issuers live at most %s, not %s", ErrInvalid, IssuerLife, o.Life)
	}
	if o.DNSDomains == nil {
		o.DNSDomains = []string{td.Name(), "localhost"}
	}
	if o.Replace && o.edits() {
		return o, fmt.Errorf("%w: either all nodes are signed anew, or some are added or dropped", ErrInvalid)
	}
	for _, domain := range o.DNSDomains {
		if !validDNSName(domain) {
			return o, fmt.Errorf("%w: %q is not a lower-case DNS domain", ErrInvalid, domain)
		}
	}
	if o.IPRanges == nil {
		o.IPRanges = []*net.IPNet{
			{IP: net.IPv4(127, 0, 0, 0).To4(), Mask: net.CIDRMask(8, 32)},
			{IP: net.IPv6loopback, Mask: net.CIDRMask(128, 128)},
		}
	}
	return o, nil
}

// covers reports, as an error, whether a manifest is of other requests
// or of other limits.
func (m Manifest) covers(requests []NodeRequest, o SignOptions) error {
	if len(requests) != len(m.Nodes) {
		return fmt.Errorf("%w: a manifest of %d nodes, and these are %d", ErrExists, len(m.Nodes), len(requests))
	}
	for i, r := range requests {
		keys, err := r.check(m.TrustDomain)
		if err != nil {
			return fmt.Errorf("node %q: %w", r.ID, err)
		}
		n := m.Nodes[i]
		same := r.ID == n.ID && r.RaftAddress == n.RaftAddress && r.APIAddress == n.APIAddress && r.AuditKey == n.AuditKey &&
			keys.transport.Equal(n.Key) &&
			samePublicKey(keys.identity, n.IdentityIssuer.PublicKey) &&
			samePublicKey(keys.grants, n.GrantIssuer.PublicKey) &&
			samePublicKey(keys.api, n.APICertificate.PublicKey) &&
			slices.Equal(r.DNSNames, n.APICertificate.DNSNames) &&
			slices.EqualFunc(r.IPs, n.APICertificate.IPAddresses, net.IP.Equal)
		if !same {
			return fmt.Errorf("%w: a manifest in which node %q has other keys or addresses", ErrExists, n.ID)
		}
		if !slices.Equal(o.DNSDomains, n.IdentityIssuer.PermittedDNSDomains) || !slices.EqualFunc(o.IPRanges, n.IdentityIssuer.PermittedIPRanges, sameRange) {
			return fmt.Errorf("%w: a manifest in which the issuer of node %q may name hosts under %s and %v", ErrExists, n.ID,
				orNone(n.IdentityIssuer.PermittedDNSDomains), n.IdentityIssuer.PermittedIPRanges)
		}
	}
	return nil
}

func sameRange(a, b *net.IPNet) bool { return a.String() == b.String() }

// signNode signs one node's three certificates.
func (o *offline) signNode(r NodeRequest, opts SignOptions) (NodeEntry, error) {
	keys, err := r.check(o.identityTD)
	if err != nil {
		return NodeEntry{}, err
	}
	n := NodeEntry{ID: r.ID, RaftAddress: r.RaftAddress, APIAddress: r.APIAddress, Key: keys.transport, AuditKey: r.AuditKey}
	v, err := clamp(o.identity.cert, opts.Now, opts.Life, offlineBackdate, earliest(o.identity.cert.NotAfter, o.grant.cert.NotAfter))
	if err != nil {
		return NodeEntry{}, err
	}
	for _, key := range []crypto.PublicKey{keys.identity, keys.grants} {
		if pub, ok := key.(*ecdsa.PublicKey); !ok || pub.Curve != elliptic.P256() {
			return NodeEntry{}, fmt.Errorf("%w: an issuer's key must be ECDSA on P-256", ErrKey)
		}
	}
	template := issuerProfile(issuerName(o.identityTD, r.ID, RoleIdentity), o.identityTD.ID().URL(),
		identityLimits(opts.DNSDomains, opts.IPRanges), keys.identity, v)
	if n.IdentityIssuer, err = o.sign(o.identity, template, opts.Now); err != nil {
		return NodeEntry{}, err
	}
	template = issuerProfile(issuerName(o.grants, r.ID, RoleGrants), o.grants.ID().URL(),
		grantLimits(o.grants.Name()), keys.grants, v)
	if n.GrantIssuer, err = o.sign(o.grant, template, opts.Now); err != nil {
		return NodeEntry{}, err
	}
	template = identityProfile(nodeID(o.identityTD, r.ID).URL(), r.DNSNames, r.IPs, keys.api, v)
	if n.APICertificate, err = o.sign(o.identity, template, opts.Now); err != nil {
		return NodeEntry{}, err
	}
	return n, nil
}

func issuerName(td spiffeid.TrustDomain, node string, role Role) string {
	return fmt.Sprintf("%s %s issuer %s", td.Name(), role, node)
}
