package ca

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"path/filepath"
	"time"
)

const (
	// CertificatesFile is the name, in a node's key folder, of the certificates
	// that came after those of the manifest.
	CertificatesFile = "certificates.json"

	// RenewedDir is the folder, in the offline folder, of what RenewNodes signed.
	RenewedDir = "renewed"
)

// NodeCertificates are a node's issuers and its API certificate, to follow those
// that it has. They are public: what makes them good is the roots' signature, and
// the node has the keys.
type NodeCertificates struct {
	Node           string
	IdentityIssuer *x509.Certificate
	GrantIssuer    *x509.Certificate
	APICertificate *x509.Certificate
}

type certificatesJSON struct {
	Node           string `json:"node"`
	IdentityIssuer string `json:"identity_issuer"`
	GrantIssuer    string `json:"grant_issuer"`
	APICertificate string `json:"api_certificate"`
}

// Encode returns the file.
func (c NodeCertificates) Encode() ([]byte, error) {
	if c.IdentityIssuer == nil || c.GrantIssuer == nil || c.APICertificate == nil {
		return nil, fmt.Errorf("%w: a certificate of node %q is missing", ErrInvalid, c.Node)
	}
	return encodeJSON(certificatesJSON{
		Node:           c.Node,
		IdentityIssuer: string(EncodeCertificates(c.IdentityIssuer)),
		GrantIssuer:    string(EncodeCertificates(c.GrantIssuer)),
		APICertificate: string(EncodeCertificates(c.APICertificate)),
	})
}

// NotAfter is when the first of them ends.
func (c NodeCertificates) NotAfter() time.Time {
	return earliest(c.IdentityIssuer.NotAfter, c.GrantIssuer.NotAfter, c.APICertificate.NotAfter)
}

// ParseNodeCertificates reads what Encode wrote. Whether roots signed them is
// checked by whoever takes them into use.
func ParseNodeCertificates(text []byte) (NodeCertificates, error) {
	var w certificatesJSON
	if err := decodeJSON(text, &w); err != nil {
		return NodeCertificates{}, fmt.Errorf("%w: node certificates: %w", ErrInvalid, err)
	}
	if !validName(w.Node) {
		return NodeCertificates{}, fmt.Errorf("%w: node certificates: node: %q is no name of a node", ErrInvalid, w.Node)
	}
	c := NodeCertificates{Node: w.Node}
	for _, f := range []struct {
		name, text string
		into       **x509.Certificate
	}{
		{"identity_issuer", w.IdentityIssuer, &c.IdentityIssuer},
		{"grant_issuer", w.GrantIssuer, &c.GrantIssuer},
		{"api_certificate", w.APICertificate, &c.APICertificate},
	} {
		certs, err := DecodeCertificates([]byte(f.text))
		if err == nil && len(certs) != 1 {
			err = fmt.Errorf("%d certificates where one belongs", len(certs))
		}
		if err != nil {
			return NodeCertificates{}, fmt.Errorf("%w: node certificates: %s: %w", ErrInvalid, f.name, err)
		}
		*f.into = certs[0]
	}
	return c, nil
}

// LoadNodeCertificates reads a file of ParseNodeCertificates.
func LoadNodeCertificates(path string) (NodeCertificates, error) {
	text, err := readFile(path)
	if err != nil {
		return NodeCertificates{}, err
	}
	c, err := ParseNodeCertificates(text)
	if err != nil {
		return NodeCertificates{}, wrapPath(path, err)
	}
	return c, nil
}

// RenewNodes signs the successors of some nodes' issuers and API certificates,
// ahead of their end, and writes them to RenewedDir/NODE.json. The requests are
// those of SignNodes, or later ones with new keys for the issuers; transport and
// audit key must be the manifest's, for they are who a node is. Names that the
// issuers may give stay as they are unless the options say otherwise.
func RenewNodes(dir string, requests []NodeRequest, o SignOptions) ([]NodeCertificates, error) {
	off, err := openOffline(dir, o.Open)
	if err != nil {
		return nil, err
	}
	defer off.close()
	m, err := LoadManifest(filepath.Join(dir, ManifestFile))
	if err != nil {
		return nil, err
	}
	all := make([]NodeCertificates, 0, len(requests))
	for _, r := range requests {
		c, err := off.renewNode(m, r, o)
		if err != nil {
			return nil, fmt.Errorf("node %q: %w", r.ID, err)
		}
		all = append(all, c)
	}
	return all, nil
}

func (o *offline) renewNode(m Manifest, r NodeRequest, opts SignOptions) (NodeCertificates, error) {
	entry, ok := m.Node(r.ID)
	if !ok {
		return NodeCertificates{}, fmt.Errorf("%w: no such node in the manifest", ErrInvalid)
	}
	keys, err := r.check(o.identityTD)
	if err != nil {
		return NodeCertificates{}, err
	}
	if !keys.transport.Equal(entry.Key) || r.AuditKey != entry.AuditKey {
		// Somebody else's keys under this node's name would be this node.
		return NodeCertificates{}, fmt.Errorf("%w: the request is not of the node in the manifest: its transport or audit key is another", ErrKey)
	}
	if opts.DNSDomains == nil {
		opts.DNSDomains = append([]string{}, entry.IdentityIssuer.PermittedDNSDomains...)
	}
	if opts.IPRanges == nil {
		opts.IPRanges = append([]*net.IPNet{}, entry.IdentityIssuer.PermittedIPRanges...)
	}
	if opts, err = opts.checked(o); err != nil {
		return NodeCertificates{}, err
	}
	last, err := lastOf(o.dir, entry)
	if err != nil {
		return NodeCertificates{}, err
	}
	by, err := o.newest()
	if err != nil {
		return NodeCertificates{}, err
	}
	return o.renewed(nodeSpec{
		id: r.ID, identity: keys.identity, grants: keys.grants, api: keys.api, dnsNames: r.DNSNames, ips: r.IPs,
		domains: opts.DNSDomains, ranges: opts.IPRanges, now: opts.Now, life: opts.Life, apiUntil: last.APICertificate.NotAfter,
	}, by)
}

// renewed signs a member's certificates, and keeps them as those signed last.
func (o *offline) renewed(s nodeSpec, by signers) (NodeCertificates, error) {
	c, err := o.certify(s, by)
	if err != nil {
		return NodeCertificates{}, err
	}
	text, err := c.Encode()
	if err != nil {
		return NodeCertificates{}, err
	}
	return c, o.write(filepath.Join(RenewedDir, s.id+".json"), text)
}

// lastOf is what was signed last for a member: in the manifest, or since.
func lastOf(dir string, e NodeEntry) (NodeCertificates, error) {
	first := NodeCertificates{Node: e.ID, IdentityIssuer: e.IdentityIssuer, GrantIssuer: e.GrantIssuer, APICertificate: e.APICertificate}
	path := filepath.Join(dir, RenewedDir, e.ID+".json")
	c, err := LoadNodeCertificates(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return first, nil
	case err != nil:
		return first, err
	case c.Node != e.ID:
		return first, fmt.Errorf("%w: %s is of node %q", ErrInvalid, path, c.Node)
	case c.GrantIssuer.NotBefore.Before(first.GrantIssuer.NotBefore):
		return first, nil // a manifest has been signed since
	}
	return c, nil
}

// write puts a public file into the offline folder.
func (o *offline) write(name string, text []byte) error {
	path := filepath.Join(o.dir, name)
	if err := makeFolder(filepath.Dir(path)); err != nil {
		return err
	}
	return writeFile(path, text, publicMode)
}

// InstallCertificates puts a node's new certificates into its key folder, where
// the running node finds them. It refuses those of another node and those whose
// key is not there; what is there already stays as it is.
func InstallCertificates(dir string, c NodeCertificates) error {
	request, err := LoadNodeRequest(filepath.Join(dir, NodeRequestFile))
	if err != nil {
		return err
	}
	if request.ID != c.Node {
		return fmt.Errorf("%w: they are of node %q, and %s is of node %q", ErrInvalid, c.Node, dir, request.ID)
	}
	_, err1 := keyFiles{dir, identityIssuerKeyFile}.of(c.IdentityIssuer.PublicKey)
	_, err2 := keyFiles{dir, grantIssuerKeyFile}.of(c.GrantIssuer.PublicKey)
	_, err3 := keyFiles{dir, apiKeyFile}.of(c.APICertificate.PublicKey)
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	text, err := c.Encode()
	if err != nil {
		return err
	}
	path := filepath.Join(dir, CertificatesFile)
	if old, err := readFile(path); err == nil && bytes.Equal(old, text) {
		return nil
	}
	return writeFile(path, text, publicMode)
}
