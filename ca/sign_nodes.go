package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
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
	// Life of the certificates, at most IssuerLife. Zero means that, or
	// KMSIssuerLife where both roots have their keys in a KMS.
	Life time.Duration
	Open OpenKMS   // for roots in a KMS
	Now  time.Time // zero means the clock's
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
	off, err := openOffline(dir, o.Open)
	if err != nil {
		return Manifest{}, err
	}
	defer off.close()
	if o, err = o.checked(off); err != nil {
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
		Cluster:          ClusterID(off.identities.held[0].cert, off.grantRoots.held[0].cert),
		Sequence:         old.Sequence + 1,
		TrustDomain:      off.identityTD,
		GrantTrustDomain: off.grants,
		Dev:              isDev(off.identities.held[0].cert),
		IdentityRoots:    off.identities.certificates(),
		GrantRoots:       off.grantRoots.certificates(),
		RootDocuments:    off.documents,
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
	root, err := o.signing(o.identities)
	if err != nil {
		return Manifest{}, err
	}
	if m.Signature, err = o.signStatement(root, "manifest of "+m.Cluster, statement, now); err != nil {
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

func (o SignOptions) checked(off *offline) (SignOptions, error) {
	if o.Now.IsZero() {
		o.Now = time.Now()
	}
	if o.Life == 0 {
		o.Life = off.life()
	}
	if o.Life < 0 || o.Life > IssuerLife {
		return o, fmt.Errorf("%w: issuers live at most %s, not %s", ErrInvalid, IssuerLife, o.Life)
	}
	if o.DNSDomains == nil {
		o.DNSDomains = []string{off.identityTD.Name(), "localhost"}
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

// signNode signs the three certificates that a node asks for.
func (o *offline) signNode(r NodeRequest, opts SignOptions) (NodeEntry, error) {
	keys, err := r.check(o.identityTD)
	if err != nil {
		return NodeEntry{}, err
	}
	by, err := o.newest()
	if err != nil {
		return NodeEntry{}, err
	}
	c, err := o.certify(nodeSpec{
		id: r.ID, identity: keys.identity, grants: keys.grants, api: keys.api, dnsNames: r.DNSNames, ips: r.IPs,
		domains: opts.DNSDomains, ranges: opts.IPRanges, now: opts.Now, life: opts.Life,
	}, by)
	return NodeEntry{
		ID: r.ID, RaftAddress: r.RaftAddress, APIAddress: r.APIAddress, Key: keys.transport, AuditKey: r.AuditKey,
		IdentityIssuer: c.IdentityIssuer, GrantIssuer: c.GrantIssuer, APICertificate: c.APICertificate,
	}, err
}

// nodeSpec is what a node's three certificates are to say.
type nodeSpec struct {
	id                    string
	identity, grants, api crypto.PublicKey
	dnsNames              []string // of the API
	ips                   []net.IP // likewise
	domains               []string // that the identity issuer may name hosts under
	ranges                []*net.IPNet
	now                   time.Time
	life                  time.Duration
	apiUntil              time.Time // the API certificate ends later than that
}

// signers are the roots that sign a node's certificates.
type signers struct{ identity, grants *authority }

// newest are the roots that sign what is new.
func (o *offline) newest() (by signers, err error) {
	if by.identity, err = o.signing(o.identities); err != nil {
		return by, err
	}
	by.grants, err = o.signing(o.grantRoots)
	return by, err
}

func (o *offline) certify(s nodeSpec, by signers) (c NodeCertificates, err error) {
	c.Node = s.id
	v, err := clamp(by.identity.cert, s.now, s.life, offlineBackdate, earliest(by.identity.cert.NotAfter, by.grants.cert.NotAfter))
	if err != nil {
		return c, err
	}
	for _, key := range []crypto.PublicKey{s.identity, s.grants} {
		if pub, ok := key.(*ecdsa.PublicKey); !ok || pub.Curve != elliptic.P256() {
			return c, fmt.Errorf("%w: an issuer's key must be ECDSA on P-256", ErrKey)
		}
	}
	template := issuerProfile(issuerName(o.identityTD, s.id, RoleIdentity), o.identityTD.ID().URL(),
		identityLimits(s.domains, s.ranges), s.identity, v)
	if c.IdentityIssuer, err = o.sign(by.identity, template, s.now); err != nil {
		return c, err
	}
	template = issuerProfile(issuerName(o.grants, s.id, RoleGrants), o.grants.ID().URL(),
		grantLimits(o.grants.Name()), s.grants, v)
	if c.GrantIssuer, err = o.sign(by.grants, template, s.now); err != nil {
		return c, err
	}
	// The cluster refuses an API certificate that ends sooner than the one it
	// would replace, as after a move to roots whose issuers live for days.
	v.notAfter = earliest(latest(v.notAfter, s.apiUntil.Add(time.Second)), by.identity.cert.NotAfter, s.now.Add(IssuerLife).Truncate(time.Second))
	template = identityProfile(nodeID(o.identityTD, s.id).URL(), s.dnsNames, s.ips, s.api, v)
	c.APICertificate, err = o.sign(by.identity, template, s.now)
	return c, err
}

func issuerName(td spiffeid.TrustDomain, node string, role Role) string {
	return fmt.Sprintf("%s %s issuer %s", td.Name(), role, node)
}
