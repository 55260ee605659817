package ca

import (
	"crypto"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/mod/sumdb/note"
)

// Node is what a running control node holds: its keys, each matched with what
// the manifest says about it.
type Node struct {
	ID           string
	SPIFFEID     spiffeid.ID
	TransportKey ed25519.PrivateKey // pinned by the other nodes
	AuditSigner  note.Signer        // signs checkpoints
	Identity     *Issuer
	Grants       *Issuer
	API          tls.Certificate // its SPIFFE ID, and the names that callers dial
}

// LoadNode reads a node's keys from dir and pairs them with its entry in the
// manifest, which it finds by the transport key. Key files that others may read
// are refused, and so is any key that does not belong to its certificate.
func LoadNode(dir string, m Manifest) (*Node, error) {
	if err := m.Validate(); err != nil {
		return nil, err
	}
	keys, err := loadNodeKeys(dir)
	if err != nil {
		return nil, err
	}
	var entry *NodeEntry
	for i := range m.Nodes {
		if m.Nodes[i].Key.Equal(keys.transport.Public()) {
			entry = &m.Nodes[i]
		}
	}
	if entry == nil {
		return nil, fmt.Errorf("%w: no node of the manifest has the transport key in %s; was its request signed, and is this the newest manifest?", ErrKey, dir)
	}
	if entry.AuditKey != keys.auditVerifier {
		return nil, fmt.Errorf("%w: %s is not the audit key of node %q", ErrKey, auditKeyFile, entry.ID)
	}
	n := &Node{ID: entry.ID, SPIFFEID: nodeID(m.TrustDomain, entry.ID), TransportKey: keys.transport, AuditSigner: keys.audit}
	if n.Identity, err = newIssuer(entry.IdentityIssuer, keys.identity, RoleIdentity, m.TrustDomain); err != nil {
		return nil, wrapPath(identityIssuerKeyFile, err)
	}
	if n.Grants, err = newIssuer(entry.GrantIssuer, keys.grants, RoleGrants, m.GrantTrustDomain); err != nil {
		return nil, wrapPath(grantIssuerKeyFile, err)
	}
	if !samePublicKey(entry.APICertificate.PublicKey, keys.apiCert.Public()) {
		return nil, fmt.Errorf("%w: %s does not belong to the API certificate of node %q", ErrKey, apiKeyFile, entry.ID)
	}
	n.API = tls.Certificate{
		Certificate: [][]byte{entry.APICertificate.Raw},
		PrivateKey:  keys.apiCert,
		Leaf:        entry.APICertificate,
	}
	return n, nil
}

func newIssuer(cert *x509.Certificate, key crypto.Signer, role Role, td spiffeid.TrustDomain) (*Issuer, error) {
	a, err := newAuthority(cert, key)
	if err != nil {
		return nil, err
	}
	return &Issuer{authority: a, role: role, td: td}, nil
}
