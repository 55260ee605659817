package ca

import (
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"strings"

	"github.com/hallpass/hallpass/trust"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Manifest is all that is public about a cluster: its trust domains and roots,
// its nodes with their keys and certificates, and the first persons, groups and
// policy. `ca sign-node` writes it, every node gets the same file, and the
// identity root signs it. A running cluster learns of new nodes and renewed
// issuers from a manifest of a higher sequence number, signed by a root that it
// knows; persons, groups and policy in it are those of a new cluster alone.
type Manifest struct {
	Cluster          string // derived from the founding roots, see ClusterID
	Sequence         uint64 // counts the cluster's manifests from 1; a running cluster takes higher ones only
	TrustDomain      spiffeid.TrustDomain
	GrantTrustDomain spiffeid.TrustDomain
	Dev              bool                // the roots were made for trying things out: loopback only
	IdentityRoots    []*x509.Certificate // the founding root first
	GrantRoots       []*x509.Certificate // likewise
	RootDocuments    []string            // of both domains, one trust.Document each; none while the founding roots are all
	Nodes            []NodeEntry         // ascending by ID
	Persons          []Person
	Groups           []Group
	Policy           string // YAML
	Signature        []byte // the identity root's, over all of the above
}

// NodeEntry is what is public about one node. Its three certificates are signed
// by the roots.
type NodeEntry struct {
	ID             string
	RaftAddress    string            // host:port
	APIAddress     string            // host:port
	Key            ed25519.PublicKey // of the node-to-node transport
	AuditKey       string            // a note verifier key
	IdentityIssuer *x509.Certificate
	GrantIssuer    *x509.Certificate
	APICertificate *x509.Certificate
}

// Person is who is behind one or more SPIFFE IDs.
type Person struct {
	Name string   `json:"name"`
	IDs  []string `json:"ids"`            // SPIFFE IDs that are this person
	Owns []string `json:"owns,omitempty"` // SPIFFE IDs that act for this person
}

// Group is a named list of persons.
type Group struct {
	Name    string   `json:"name"`
	Members []string `json:"members"` // names of persons
}

// ClusterID returns the name of the cluster that two founding roots make: the
// same on every node, and of no other cluster.
func ClusterID(identityRoot, grantRoot *x509.Certificate) string {
	h := sha256.New()
	for _, cert := range []*x509.Certificate{identityRoot, grantRoot} {
		sum := sha256.Sum256(cert.Raw)
		h.Write(sum[:])
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// Node returns the entry of one node.
func (m Manifest) Node(id string) (NodeEntry, bool) {
	for _, n := range m.Nodes {
		if n.ID == id {
			return n, true
		}
	}
	return NodeEntry{}, false
}

// Roots returns the roots that are in force by the manifest's documents.
func (m Manifest) Roots() (identity, grants trust.Set, err error) {
	documents, err := trust.ParseAll([]byte(strings.Join(m.RootDocuments, "\n")))
	if err != nil {
		return identity, grants, err
	}
	var late [2]bool
	identity, late[0] = trust.NewSet(m.TrustDomain.Name(), m.IdentityRoots).Follow(documents)
	grants, late[1] = trust.NewSet(m.GrantTrustDomain.Name(), m.GrantRoots).Follow(documents)
	if late[0] || late[1] {
		return identity, grants, errors.New("roots_documents: the newest is signed by no root")
	}
	return identity, grants, nil
}

// LoadManifest reads a manifest and checks all of it; see ParseManifest.
func LoadManifest(path string) (Manifest, error) {
	text, err := readFile(path)
	if err != nil {
		return Manifest{}, err
	}
	m, err := ParseManifest(text)
	if err != nil {
		return Manifest{}, wrapPath(path, err)
	}
	return m, nil
}
