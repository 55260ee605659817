package approval

import (
	"crypto"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
)

// testManifest is a manifest with the nodes named: those of the bootstrap as they
// are there, others made for the occasion. n4:key2 has the keys of that name.
func testManifest(sequence uint64, names ...string) manifestDoc {
	doc := manifestDoc{Cluster: "acme", Sequence: sequence}
	certificate := func(der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	for _, name := range names {
		id, seed, other := strings.Cut(name, ":")
		n := testNode(id, or(seed, id))
		if at := slices.IndexFunc(firstCommand().Nodes, func(n BootstrapNode) bool { return n.ID == id }); at >= 0 && !other {
			n = firstCommand().Nodes[at]
		}
		doc.Nodes = append(doc.Nodes, manifestNode{
			ID: n.ID, RaftAddress: n.RaftAddress, APIAddress: n.APIAddress, AuditKey: n.AuditKey,
			Key:            base64.StdEncoding.EncodeToString(n.Key),
			IdentityIssuer: certificate(n.IdentityIssuer), GrantIssuer: certificate(n.GrantIssuer),
			APICertificate: certificate(apiCertificate(testRoot(RoleIdentity, 0), spiffe("node/"+id), id+" api", 2000*time.Hour)),
		})
	}
	return doc
}

// testNode is a node that was not there at the bootstrap.
func testNode(id, seed string) BootstrapNode {
	raw := sha256.Sum256([]byte("transport " + seed))
	key := ed25519.NewKeyFromSeed(raw[:])
	public, ok := key.Public().(ed25519.PublicKey)
	if !ok {
		panic("not an Ed25519 key")
	}
	vkey, err := note.NewEd25519VerifierKey("acme.test/hallpass/node/"+id, public)
	if err != nil {
		panic(err)
	}
	return BootstrapNode{
		ID: id, Key: public, AuditKey: vkey, RaftAddress: id + ".acme.test:7443", APIAddress: id + ".acme.test:8443",
		IdentityIssuer: testIssuer(RoleIdentity, id, seed+" identity", 2000*time.Hour),
		GrantIssuer:    testIssuer(RoleGrant, id, seed+" grants", 2000*time.Hour),
	}
}

// signManifest is what a root signs of a manifest, and its signature.
func signManifest(doc manifestDoc, root pair) AdoptManifest {
	body, err := json.Marshal(doc)
	if err != nil {
		panic(err)
	}
	statement := append([]byte(manifestHeader), body...)
	digest := sha256.Sum256(statement)
	signature, err := root.key.Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		panic(err)
	}
	return AdoptManifest{Statement: statement, Signature: signature}
}

// adopts brings a manifest: nodes=n1,n2,n3,n4 root=0 (of identities) by=grant.
func (s *scenario) adopts(m []string, want expectedOutcome) {
	o := options(m[2])
	doc := testManifest(s.number(m[1], 0), strings.Split(or(o["nodes"], "n1,n2,n3,n4"), ",")...)
	if o["moved"] != "" {
		at := slices.IndexFunc(doc.Nodes, func(n manifestNode) bool { return n.ID == o["moved"] })
		doc.Nodes[at].RaftAddress = "elsewhere.acme.test:7443"
	}
	doc.Cluster = or(o["cluster"], doc.Cluster)
	b := signManifest(doc, testRoot(Role(or(o["by"], string(RoleIdentity))), int(s.number(o["root"], 0))))
	if o["changed"] != "" {
		b.Statement = []byte(strings.Replace(string(b.Statement), "n4.acme.test", o["changed"], 1))
	}
	s.do(s.actor(m[0]), b, o, want)
}

// actor is "" for the cluster itself.
func (s *scenario) actor(name string) string {
	if name == "cluster" {
		return ""
	}
	return name
}

func (s *scenario) joins(m []string, want expectedOutcome) {
	var b Body = JoinNode{Node: m[2]}
	switch m[1] {
	case "promotes":
		b = PromoteNode{Node: m[2]}
	case "hands over to":
		b = HandOver{Node: m[2]}
	}
	s.do(s.actor(m[0]), b, options(m[3]), want)
}

func (s *scenario) removes(m []string, want expectedOutcome) {
	o := options(m[2])
	s.do(s.actor(m[0]), RemoveNode{Node: m[1], Reason: or(o["reason"], "its disk is gone"), Retired: o["retired"] != ""}, o, want)
}

func (s *scenario) raises(m []string, want expectedOutcome) {
	s.do(s.actor(m[0]), RaiseVersion{Version: int(s.number(m[1], 0))}, options(m[2]), want)
}

func (s *scenario) expectNodes(m []string, _ expectedOutcome) {
	_, nodes, err := Read(s.w.a).Roster()
	if err != nil {
		s.fatalf("%v", err)
	}
	var got []string
	for _, n := range nodes {
		got = append(got, n.ID)
	}
	if text := strings.Join(got, " "); text != m[0] {
		s.fatalf("they are %s", text)
	}
}
