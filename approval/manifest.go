package approval

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"

	"github.com/hallpass/hallpass/audit"
)

// manifestHeader begins what a root signs of a manifest; no certificate begins
// so.
const manifestHeader = "hallpass manifest v1\n"

// manifestDoc is what the state machine reads of a manifest. What else is in it
// (the roots and who is who in a new cluster) says nothing to one that runs.
type manifestDoc struct {
	Cluster  string         `json:"cluster"`
	Sequence uint64         `json:"sequence"`
	Nodes    []manifestNode `json:"nodes"`
}

type manifestNode struct {
	ID             string `json:"id"`
	RaftAddress    string `json:"raft_address"`
	APIAddress     string `json:"api_address"`
	Key            string `json:"key"`
	AuditKey       string `json:"audit_key"`
	IdentityIssuer string `json:"identity_issuer"`
	GrantIssuer    string `json:"grant_issuer"`
	APICertificate string `json:"api_certificate"`
}

// member is a manifestNode that was read.
type member struct {
	node      Node
	issuers   map[Role][]byte // DER
	apiServes []byte          // DER
}

// openManifest reads a manifest once a root in force has signed these very
// bytes: who can write commands could otherwise have the nodes talk to a machine
// of his own.
func (t *turn) openManifest(statement, signature []byte) (manifestDoc, error) {
	body, ok := bytes.CutPrefix(statement, []byte(manifestHeader))
	if !ok {
		return manifestDoc{}, invalid("it is not the signed part of a manifest")
	}
	r, err := t.state().Roots(RoleIdentity)
	if err != nil {
		return manifestDoc{}, err
	}
	roots, err := parseAll(r.InForce)
	if err != nil {
		return manifestDoc{}, err
	}
	if !signedByOne(roots, statement, signature) {
		return manifestDoc{}, denied("no identity root that is in force has signed this manifest").
			then("sign it with hallpass ca sign-node, in the folder of a root that is in force")
	}
	var doc manifestDoc
	if err := json.Unmarshal(body, &doc); err != nil {
		return manifestDoc{}, invalid("the manifest is not one")
	}
	if doc.Cluster != t.m.Cluster {
		return manifestDoc{}, invalid("the manifest is of cluster %q, this is %q", doc.Cluster, t.m.Cluster)
	}
	if doc.Sequence > maxSequence {
		return manifestDoc{}, invalid("the manifest has number %d", doc.Sequence)
	}
	if len(doc.Nodes) == 0 || len(doc.Nodes) > MaxKnownNodes {
		return manifestDoc{}, invalid("a manifest has 1 to %d nodes, not %d", MaxKnownNodes, len(doc.Nodes))
	}
	return doc, nil
}

func signedByOne(roots []*x509.Certificate, statement, signature []byte) bool {
	digest := sha256.Sum256(statement)
	for _, root := range roots {
		if key, ok := root.PublicKey.(*ecdsa.PublicKey); ok && ecdsa.VerifyASN1(key, digest[:], signature) {
			return true
		}
	}
	return false
}

// read turns the texts of a manifest into a member.
func (n manifestNode) read() (member, error) {
	key, err := base64.StdEncoding.Strict().DecodeString(n.Key)
	if err != nil {
		return member{}, invalid("node %q: its key is not base64", n.ID)
	}
	m := member{
		node:    Node{ID: n.ID, Key: key, AuditKey: n.AuditKey, RaftAddress: n.RaftAddress, APIAddress: n.APIAddress},
		issuers: map[Role][]byte{},
	}
	if m.issuers[RoleIdentity], err = onePEM(n.ID, n.IdentityIssuer); err != nil {
		return member{}, err
	}
	if m.issuers[RoleGrant], err = onePEM(n.ID, n.GrantIssuer); err != nil {
		return member{}, err
	}
	m.apiServes, err = onePEM(n.ID, n.APICertificate)
	return m, err
}

func onePEM(node, text string) ([]byte, error) {
	block, rest := pem.Decode([]byte(text))
	if block == nil || block.Type != "CERTIFICATE" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, invalid("node %q: where a certificate belongs is none, or more than one", node)
	}
	return block.Bytes, nil
}

// checkNode refuses what is no node.
func checkNode(n Node) error {
	if err := checkName("node", n.ID); err != nil {
		return err
	}
	if len(n.Key) != ed25519.PublicKeySize {
		return invalid("node %q: the transport key is not an Ed25519 public key", n.ID)
	}
	if _, err := audit.Verifiers(n.AuditKey); err != nil {
		return invalid("node %q: the audit key is not a note verifier key", n.ID)
	}
	for _, address := range []string{n.RaftAddress, n.APIAddress} {
		if len(address) > maxAddress {
			return invalid("node %q: an address is %d bytes long, at most %d", n.ID, len(address), maxAddress)
		}
		if err := checkText("the address of node "+n.ID, address, 1); err != nil {
			return err
		}
	}
	return nil
}
