package ca

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/mod/sumdb/note"
)

// AdminGroup is the group whose members run the cluster, and MinAdmins how many
// it has at least: an author of a change and two others to approve it.
const (
	AdminGroup = "admins"
	MinAdmins  = 3
)

// Validate checks everything that ParseManifest promises. It does not look at
// the clock: a manifest outlives the certificates in it.
func (m Manifest) Validate() error {
	for _, check := range []func() error{m.checkDomains, m.checkRoots, m.checkNodes, m.checkSeed, m.checkSignature} {
		if err := check(); err != nil {
			return fmt.Errorf("%w: %w", ErrManifest, err)
		}
	}
	return nil
}

func (m Manifest) checkDomains() error {
	if m.Sequence == 0 {
		return errors.New("sequence: 0, and manifests are counted from 1")
	}
	if err := checkTrustDomains(m.TrustDomain, m.GrantTrustDomain); err != nil {
		return fmt.Errorf("trust_domain, grant_trust_domain: %w", err)
	}
	return nil
}

func (m Manifest) checkRoots() error {
	for _, list := range []struct {
		field string
		roots []*x509.Certificate
		td    spiffeid.TrustDomain
	}{
		{"identity_roots", m.IdentityRoots, m.TrustDomain},
		{"grant_roots", m.GrantRoots, m.GrantTrustDomain},
	} {
		if len(list.roots) == 0 {
			return fmt.Errorf("%s: empty", list.field)
		}
		for i, root := range list.roots {
			if err := checkRoot(root, list.td); err != nil {
				return fmt.Errorf("%s[%d]: %w", list.field, i, err)
			}
			if isDev(root) != m.Dev {
				return fmt.Errorf("%s[%d]: a development root and any other do not mix, and \"dev\" says which they are", list.field, i)
			}
		}
	}
	for i, root := range m.GrantRoots {
		if slices.ContainsFunc(m.IdentityRoots, func(o *x509.Certificate) bool { return samePublicKey(o.PublicKey, root.PublicKey) }) {
			// One key under both roots would let a grant issuer's chain end in
			// the identity domain.
			return fmt.Errorf("grant_roots[%d]: its key is an identity root's too", i)
		}
	}
	if _, _, err := m.Roots(); err != nil {
		return err
	}
	if want := ClusterID(m.IdentityRoots[0], m.GrantRoots[0]); m.Cluster != want {
		return fmt.Errorf("cluster: %q, but these roots make %q", m.Cluster, want)
	}
	return nil
}

// checkRoot checks a self-signed root of a trust domain.
func checkRoot(root *x509.Certificate, td spiffeid.TrustDomain) error {
	switch {
	case !root.IsCA || !root.BasicConstraintsValid || root.KeyUsage&x509.KeyUsageCertSign == 0:
		return errors.New("not a certificate authority")
	case root.CheckSignatureFrom(root) != nil:
		return errors.New("not signed by itself")
	case !hasURI(root, td.IDString()):
		return fmt.Errorf("not a root of %s", td)
	}
	return nil
}

func hasURI(cert *x509.Certificate, uri string) bool {
	return len(cert.URIs) == 1 && cert.URIs[0].String() == uri
}

func (m Manifest) checkNodes() error {
	if len(m.Nodes) == 0 {
		return errors.New("nodes: empty")
	}
	seen := make(map[string]string) // what must be unique → where it was first
	for i, n := range m.Nodes {
		at := fmt.Sprintf("nodes[%d]", i)
		if err := m.checkNode(n); err != nil {
			return fmt.Errorf("%s.%w", at, err)
		}
		if i > 0 && m.Nodes[i-1].ID >= n.ID {
			return fmt.Errorf("%s.id: %q does not follow %q", at, n.ID, m.Nodes[i-1].ID)
		}
		for _, f := range []struct{ name, value string }{
			{"raft_address", n.RaftAddress},
			{"api_address", n.APIAddress},
			{"key", string(n.Key)},
			{"audit_key", auditKeyText(n.AuditKey)},
			{"identity_issuer", string(n.IdentityIssuer.RawSubjectPublicKeyInfo)},
			{"grant_issuer", string(n.GrantIssuer.RawSubjectPublicKeyInfo)},
			{"api_certificate", string(n.APICertificate.RawSubjectPublicKeyInfo)},
		} {
			if where, dup := seen[f.value]; dup {
				// Two nodes with one key are one node to every check that counts
				// nodes by their keys.
				return fmt.Errorf("%s.%s: the same as %s", at, f.name, where)
			}
			seen[f.value] = at + "." + f.name
		}
	}
	return nil
}

func (m Manifest) checkNode(n NodeEntry) error {
	if !validName(n.ID) {
		return fmt.Errorf("id: %q is not a name of a-z, 0-9, \".\", \"-\" and \"_\"", n.ID)
	}
	if _, err := checkAddress(n.RaftAddress); err != nil {
		return fmt.Errorf("raft_address: %w", err)
	}
	if _, err := checkAddress(n.APIAddress); err != nil {
		return fmt.Errorf("api_address: %w", err)
	}
	if len(n.Key) != ed25519.PublicKeySize {
		return errors.New("key: not an Ed25519 public key")
	}
	if err := checkAuditKey(n.AuditKey, m.TrustDomain, n.ID); err != nil {
		return fmt.Errorf("audit_key: %w", err)
	}
	if err := checkIssuer(n.IdentityIssuer, m.IdentityRoots, RoleIdentity, m.TrustDomain); err != nil {
		return fmt.Errorf("identity_issuer: %w", err)
	}
	if err := checkIssuer(n.GrantIssuer, m.GrantRoots, RoleGrants, m.GrantTrustDomain); err != nil {
		return fmt.Errorf("grant_issuer: %w", err)
	}
	id, err := VerifyIdentity([]*x509.Certificate{n.APICertificate}, m.IdentityRoots, m.TrustDomain, n.APICertificate.NotBefore)
	if err != nil {
		return fmt.Errorf("api_certificate: %w", err)
	}
	if want := nodeID(m.TrustDomain, n.ID); id != want {
		return fmt.Errorf("api_certificate: of %s, not of %s", id, want)
	}
	return nil
}

// checkIssuer checks that a certificate is a node's issuer with the constraints
// of its role, signed by one of the roots.
func checkIssuer(cert *x509.Certificate, roots []*x509.Certificate, role Role, td spiffeid.TrustDomain) error {
	key, ok := cert.PublicKey.(*ecdsa.PublicKey)
	switch {
	case !ok || CheckPublicKey(key) != nil:
		return errors.New("its key is not ECDSA")
	case !cert.IsCA || !cert.BasicConstraintsValid || cert.KeyUsage&x509.KeyUsageCertSign == 0:
		return errors.New("not a certificate authority")
	case cert.MaxPathLen != 0 || !cert.MaxPathLenZero:
		return errors.New("its path length is not 0: it could make further issuers")
	case !hasURI(cert, td.IDString()):
		return fmt.Errorf("not an issuer of %s", td)
	}
	pool := x509.NewCertPool()
	for _, root := range roots {
		pool.AddCert(root)
	}
	_, err := cert.Verify(x509.VerifyOptions{
		Roots:       pool,
		CurrentTime: cert.NotBefore,
		KeyUsages:   []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return err
	}
	return checkLimits(cert, role, td)
}

// checkLimits checks an issuer's name constraints. They are what is left of an
// issuer's power when its node is stolen.
func checkLimits(cert *x509.Certificate, role Role, td spiffeid.TrustDomain) error {
	if !cert.PermittedDNSDomainsCritical {
		return errors.New("its name constraints are missing or not critical")
	}
	if role == RoleIdentity {
		if len(cert.PermittedURIDomains)+len(cert.ExcludedURIDomains) > 0 {
			return errors.New("an identity issuer has no URI constraints (rustls refuses chains with one)")
		}
		if len(cert.PermittedDNSDomains)+len(cert.ExcludedDNSDomains) == 0 || len(cert.PermittedIPRanges)+len(cert.ExcludedIPRanges) == 0 {
			return errors.New("its DNS names or addresses are not constrained")
		}
		return nil
	}
	want := grantLimits(td.Name())
	same := slices.Equal(cert.PermittedURIDomains, want.PermittedURIDomains) &&
		slices.Equal(cert.ExcludedURIDomains, want.ExcludedURIDomains) &&
		slices.Equal(cert.ExcludedDNSDomains, want.ExcludedDNSDomains) &&
		slices.Equal(cert.ExcludedEmailAddresses, want.ExcludedEmailAddresses) &&
		slices.EqualFunc(cert.ExcludedIPRanges, want.ExcludedIPRanges, sameRange) &&
		len(cert.PermittedDNSDomains)+len(cert.PermittedEmailAddresses)+len(cert.PermittedIPRanges) == 0
	if !same {
		return fmt.Errorf("its name constraints are not those of a grant issuer of %s", td)
	}
	return nil
}

// checkAuditKey checks a note verifier key and that its name is the node's.
func checkAuditKey(vkey string, td spiffeid.TrustDomain, node string) error {
	v, err := note.NewVerifier(vkey)
	if err != nil {
		return err
	}
	if want := auditKeyName(td, node); v.Name() != want {
		return fmt.Errorf("it is named %q, not %q", v.Name(), want)
	}
	return nil
}

// auditKeyText is the key itself in a note verifier key: NAME+HASH+KEY, where KEY
// may hold "+" too.
func auditKeyText(vkey string) string {
	parts := strings.SplitN(vkey, "+", 3)
	return parts[len(parts)-1]
}

// auditKeyName is the name of a node's audit key, as checkpoints carry it.
func auditKeyName(td spiffeid.TrustDomain, node string) string {
	return td.Name() + "/hallpass/node/" + node
}

// nodeID is a node's SPIFFE ID. The ID was checked by validName.
func nodeID(td spiffeid.TrustDomain, node string) spiffeid.ID {
	return spiffeid.RequireFromSegments(td, "node", node)
}

func (m Manifest) checkSeed() error {
	return seed{Persons: m.Persons, Groups: m.Groups, Policy: m.Policy}.check(m.TrustDomain, m.GrantTrustDomain)
}

func (m Manifest) checkSignature() error {
	statement, err := m.Statement()
	if err != nil {
		return err
	}
	digest := sha256.Sum256(statement)
	for _, root := range m.IdentityRoots {
		if key, ok := root.PublicKey.(*ecdsa.PublicKey); ok && ecdsa.VerifyASN1(key, digest[:], m.Signature) {
			return nil
		}
	}
	return errors.New("signature: the identity root did not sign this; it was changed after `ca sign-node` wrote it")
}

// statementHeader is a line that no certificate starts with.
const statementHeader = "hallpass manifest v1\n"

// Statement returns what the identity root signs: a line that no certificate
// starts with, and the manifest without its signature.
func (m Manifest) Statement() ([]byte, error) {
	m.Signature = nil
	body, err := m.Encode()
	if err != nil {
		return nil, err
	}
	return append([]byte(statementHeader), body...), nil
}

// ParseStatement reads a manifest from what the root signed and the signature.
func ParseStatement(statement, signature []byte) (Manifest, error) {
	body, ok := bytes.CutPrefix(statement, []byte(statementHeader))
	if !ok {
		return Manifest{}, fmt.Errorf("%w: it does not begin with %q", ErrManifest, statementHeader)
	}
	var w manifestJSON
	if err := decodeJSON(body, &w); err != nil {
		return Manifest{}, fmt.Errorf("%w: %w", ErrManifest, err)
	}
	m, err := w.parse()
	if err != nil {
		return Manifest{}, fmt.Errorf("%w: %w", ErrManifest, err)
	}
	m.Signature = signature
	again, err := m.Statement()
	if err != nil {
		return Manifest{}, err
	}
	if !bytes.Equal(again, statement) {
		return Manifest{}, fmt.Errorf("%w: not in the form that it was written in", ErrManifest)
	}
	return m, m.Validate()
}
