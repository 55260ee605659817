package ca

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/mod/sumdb/note"
)

// The files of a node's key folder. Issuers and the API have successors: each
// key of theirs that was made later is in a file of its own, see keyFiles.
const (
	transportKeyFile      = "transport.key"
	auditKeyFile          = "audit.key"
	identityIssuerKeyFile = "identity-issuer.key"
	grantIssuerKeyFile    = "grants-issuer.key"
	apiKeyFile            = "api.key"

	// NodeRequestFile is the request's name in a node's key folder.
	NodeRequestFile = "node-request.json"
)

// NodeOptions says who a node is and how it is reached.
type NodeOptions struct {
	ID          string               // unique in the cluster, in lower case
	TrustDomain spiffeid.TrustDomain // of identities
	RaftAddress string               // host:port that the other nodes dial
	APIAddress  string               // host:port that callers dial
	DNSNames    []string             // for the API certificate; APIAddress's host is added
	IPs         []net.IP             // likewise
	// NewKeys makes new keys for the issuers and the API, beside those that are
	// there. The transport and audit keys are who the node is, and stay.
	NewKeys bool
}

// NodeRequest asks the offline roots to make a node a member: everything about
// it that is public, with a proof for each of its five keys that the node holds
// it. It is carried by hand, so compare its Fingerprint on both ends.
type NodeRequest struct {
	ID             string   `json:"id"`
	TrustDomain    string   `json:"trust_domain"`
	RaftAddress    string   `json:"raft_address"`
	APIAddress     string   `json:"api_address"`
	DNSNames       []string `json:"dns_names"`
	IPs            []net.IP `json:"ips"`
	Transport      string   `json:"transport"`       // CSR, PEM
	IdentityIssuer string   `json:"identity_issuer"` // CSR, PEM
	GrantIssuer    string   `json:"grant_issuer"`    // CSR, PEM
	API            string   `json:"api"`             // CSR, PEM
	AuditKey       string   `json:"audit_key"`       // note verifier key
	Proof          string   `json:"proof"`           // note over all of the above, signed with the audit key
}

// Encode returns the request's file.
func (r NodeRequest) Encode() ([]byte, error) { return encodeJSON(r) }

// Fingerprint returns the lower-case hex SHA-256 of the request.
func (r NodeRequest) Fingerprint() (string, error) {
	text, err := r.Encode()
	if err != nil {
		return "", err
	}
	return hexSHA256(text), nil
}

// key roles: a CSR's subject says which of a node's keys it is for, so that a
// request cannot be carried with two of them swapped.
const (
	forTransport      = "transport"
	forIdentityIssuer = "identity issuer"
	forGrantIssuer    = "grants issuer"
	forAPI            = "api"
)

func csrName(node, role string) string { return "hallpass node " + node + " " + role }

// nodeKeys are the private keys of a node. They are made on it and never leave.
type nodeKeys struct {
	transport                 ed25519.PrivateKey
	audit                     note.Signer
	auditVerifier             string
	identity, grants, apiCert crypto.Signer
}

// NewNode makes a node's keys in dir, which must be on that node, and the
// request to have them signed. Keys that are there already are kept, and the
// request stays with those that it named, so running it again, after a crash as
// well, changes nothing but what the options change.
func NewNode(dir string, o NodeOptions) (NodeRequest, error) {
	o, err := o.checked()
	if err != nil {
		return NodeRequest{}, err
	}
	if err := os.MkdirAll(dir, folderMode); err != nil {
		return NodeRequest{}, fmt.Errorf("ca: %w", err)
	}
	path := filepath.Join(dir, NodeRequestFile)
	old, oldErr := LoadNodeRequest(path)
	if oldErr != nil && !errors.Is(oldErr, fs.ErrNotExist) {
		return NodeRequest{}, oldErr
	}
	if oldErr == nil && (old.ID != o.ID || old.TrustDomain != o.TrustDomain.Name()) {
		// The same keys under two names would be two nodes to whoever counts.
		return NodeRequest{}, fmt.Errorf("%w: %s holds the keys of node %q of %s", ErrExists, dir, old.ID, old.TrustDomain)
	}
	auditName := auditKeyName(o.TrustDomain, o.ID)
	keys, err := makeNodeKeys(dir, auditName, old, o.NewKeys)
	if err != nil {
		return NodeRequest{}, err
	}
	if have := keys.audit.Name(); have != auditName {
		return NodeRequest{}, fmt.Errorf("%w: %s holds the keys of %s, not of %s", ErrExists, dir, have, auditName)
	}
	request, err := keys.request(o)
	if err != nil {
		return NodeRequest{}, err
	}
	if oldErr == nil && old.same(request) {
		return old, nil
	}
	text, err := encodeJSON(request)
	if err != nil {
		return NodeRequest{}, err
	}
	if err := writeFile(path, text, publicMode); err != nil {
		return NodeRequest{}, err
	}
	return request, nil
}

// checked validates the options and adds the API's host to the names.
func (o NodeOptions) checked() (NodeOptions, error) {
	if !validName(o.ID) {
		return o, fmt.Errorf("%w: the node id %q is not a name of a-z, 0-9, \".\", \"-\" and \"_\"", ErrInvalid, o.ID)
	}
	if !validDNSName(o.TrustDomain.Name()) {
		return o, fmt.Errorf("%w: the trust domain %q is not a lower-case DNS name", ErrInvalid, o.TrustDomain.Name())
	}
	if _, err := checkAddress(o.RaftAddress); err != nil {
		return o, fmt.Errorf("raft address: %w", err)
	}
	host, err := checkAddress(o.APIAddress)
	if err != nil {
		return o, fmt.Errorf("api address: %w", err)
	}
	if o.RaftAddress == o.APIAddress {
		return o, fmt.Errorf("%w: %s is both the raft and the api address", ErrInvalid, o.APIAddress)
	}
	o.DNSNames, o.IPs = slices.Clone(o.DNSNames), slices.Clone(o.IPs)
	if ip := net.ParseIP(host); ip != nil {
		if !slices.ContainsFunc(o.IPs, ip.Equal) {
			o.IPs = append(o.IPs, ip)
		}
	} else if !slices.Contains(o.DNSNames, host) {
		o.DNSNames = append(o.DNSNames, host)
	}
	return o, checkNames(o.DNSNames, o.IPs)
}

// makeNodeKeys reads the keys that a request names, or those that are there, and
// makes those that are not.
func makeNodeKeys(dir, auditName string, old NodeRequest, fresh bool) (nodeKeys, error) {
	err := keepOrMake(dir, transportKeyFile, func() ([]byte, error) {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return nil, fmt.Errorf("ca: make a key: %w", err)
		}
		return EncodeKey(key)
	})
	if err != nil {
		return nodeKeys{}, err
	}
	err = keepOrMake(dir, auditKeyFile, func() ([]byte, error) {
		secret, _, err := note.GenerateKey(rand.Reader, auditName)
		if err != nil {
			return nil, fmt.Errorf("ca: make an audit key: %w", err)
		}
		return []byte(secret + "\n"), nil
	})
	if err != nil {
		return nodeKeys{}, err
	}
	k, err := loadNodeKeys(dir)
	if err != nil {
		return nodeKeys{}, err
	}
	for _, f := range []struct {
		file string
		csr  string
		into *crypto.Signer
	}{
		{identityIssuerKeyFile, old.IdentityIssuer, &k.identity},
		{grantIssuerKeyFile, old.GrantIssuer, &k.grants},
		{apiKeyFile, old.API, &k.apiCert},
	} {
		if *f.into, err = requestedKey(keyFiles{dir, f.file}, f.csr, fresh); err != nil {
			return nodeKeys{}, err
		}
	}
	return k, nil
}

// requestedKey returns the key that a request is made for: a new one, the one
// that the request before named, or the first.
func requestedKey(files keyFiles, csr string, fresh bool) (crypto.Signer, error) {
	if fresh {
		return files.add()
	}
	if csr == "" {
		return files.first()
	}
	pub, err := ParseCSR([]byte(csr))
	if err != nil {
		return nil, wrapPath(NodeRequestFile, err)
	}
	return files.of(pub)
}

func keepOrMake(dir, name string, make func() ([]byte, error)) error {
	path := filepath.Join(dir, name)
	if _, err := os.Lstat(path); err == nil {
		return nil
	}
	content, err := make()
	if err != nil {
		return err
	}
	if err := createFile(path, content, secretMode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// loadNodeKeys reads the two keys that a node has one of.
func loadNodeKeys(dir string) (nodeKeys, error) {
	var k nodeKeys
	key, err := readKey(filepath.Join(dir, transportKeyFile))
	if err != nil {
		return nodeKeys{}, err
	}
	transport, ok := key.(ed25519.PrivateKey)
	if !ok {
		return nodeKeys{}, fmt.Errorf("%w: %s is not an Ed25519 key", ErrKey, transportKeyFile)
	}
	k.transport = transport
	text, err := readSecret(filepath.Join(dir, auditKeyFile))
	if err != nil {
		return nodeKeys{}, err
	}
	k.audit, k.auditVerifier, err = parseAuditKey(strings.TrimSuffix(string(text), "\n"))
	if err != nil {
		return nodeKeys{}, wrapPath(auditKeyFile, err)
	}
	return k, nil
}

// request makes the node's request with a proof of every key.
func (k nodeKeys) request(o NodeOptions) (NodeRequest, error) {
	r := NodeRequest{
		ID:          o.ID,
		TrustDomain: o.TrustDomain.Name(),
		RaftAddress: o.RaftAddress,
		APIAddress:  o.APIAddress,
		DNSNames:    o.DNSNames,
		IPs:         o.IPs,
		AuditKey:    k.auditVerifier,
	}
	for _, c := range []struct {
		key  crypto.Signer
		role string
		into *string
	}{
		{k.transport, forTransport, &r.Transport},
		{k.identity, forIdentityIssuer, &r.IdentityIssuer},
		{k.grants, forGrantIssuer, &r.GrantIssuer},
		{k.apiCert, forAPI, &r.API},
	} {
		csr, err := MakeCSR(c.key, csrName(o.ID, c.role))
		if err != nil {
			return NodeRequest{}, err
		}
		*c.into = string(csr)
	}
	text, err := r.proven()
	if err != nil {
		return NodeRequest{}, err
	}
	proof, err := note.Sign(&note.Note{Text: text}, k.audit)
	if err != nil {
		return NodeRequest{}, fmt.Errorf("ca: sign the request: %w", err)
	}
	r.Proof = string(proof)
	return r, nil
}
