package ca

import (
	"crypto"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"path/filepath"

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
	Identity     *Issuer            // the manifest's; IssuerOf makes their successors
	Grants       *Issuer            // likewise
	API          tls.Certificate    // likewise; its SPIFFE ID, and the names that callers dial

	dir        string // of the keys
	identityTD spiffeid.TrustDomain
	grantsTD   spiffeid.TrustDomain
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
	n := &Node{
		ID: entry.ID, SPIFFEID: nodeID(m.TrustDomain, entry.ID), TransportKey: keys.transport, AuditSigner: keys.audit,
		dir: dir, identityTD: m.TrustDomain, grantsTD: m.GrantTrustDomain,
	}
	if n.Identity, err = n.IssuerOf(RoleIdentity, entry.IdentityIssuer); err != nil {
		return nil, err
	}
	if n.Grants, err = n.IssuerOf(RoleGrants, entry.GrantIssuer); err != nil {
		return nil, err
	}
	if n.API, err = n.APIOf(entry.APICertificate); err != nil {
		return nil, err
	}
	return n, nil
}

// IssuerOf pairs an issuer's certificate with its key, which it finds in the
// node's folder, also when it came there after LoadNode. The error wraps ErrKey
// when the folder has no key of that certificate.
func (n *Node) IssuerOf(role Role, cert *x509.Certificate) (*Issuer, error) {
	file, td := identityIssuerKeyFile, n.identityTD
	if role == RoleGrants {
		file, td = grantIssuerKeyFile, n.grantsTD
	}
	key, err := keyFiles{n.dir, file}.of(cert.PublicKey)
	if err != nil {
		return nil, err
	}
	return newIssuer(cert, key, role, td)
}

// APIOf is IssuerOf for a certificate of the node's API.
func (n *Node) APIOf(cert *x509.Certificate) (tls.Certificate, error) {
	key, err := keyFiles{n.dir, apiKeyFile}.of(cert.PublicKey)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}, nil
}

// Request is the node's request to have its keys signed, as NewNode last left it:
// what it asks its roots for, again and again.
func (n *Node) Request() (NodeRequest, error) {
	return LoadNodeRequest(filepath.Join(n.dir, NodeRequestFile))
}

// Certificates are those that were put into the node's folder after it began. The
// error wraps fs.ErrNotExist when there are none.
func (n *Node) Certificates() (NodeCertificates, error) {
	return LoadNodeCertificates(filepath.Join(n.dir, CertificatesFile))
}

func newIssuer(cert *x509.Certificate, key crypto.Signer, role Role, td spiffeid.TrustDomain) (*Issuer, error) {
	a, err := newAuthority(cert, key)
	if err != nil {
		return nil, err
	}
	return &Issuer{authority: a, role: role, td: td}, nil
}
