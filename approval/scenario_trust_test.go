package approval

import (
	"crypto"
	"crypto/sha256"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hallpass/hallpass/trust"
)

// issuer is the id of an issuer: i1, as a step named it, or n1/grant, one of the
// bootstrap.
func (s *scenario) issuer(name string, role Role) string {
	if id, ok := s.names[name]; ok {
		return id
	}
	node, r, _ := strings.Cut(name, "/")
	return issuerID(node, Role(or(r, string(role))))
}

// installs gives a node an issuer, or a certificate for its API.
func (s *scenario) installs(m []string, want expectedOutcome) {
	o := options(m[4])
	node, life := m[1], s.duration(or(o["life"], "1000h"))
	b := InstallIssuer{Node: node}
	signed := or(o["named"], node) // for which node it was made
	key := or(o["key"], node+" next "+m[2])
	root := testRoot(Role(or(o["by"], strings.ReplaceAll(m[2], "api", "identity"))), int(s.number(o["root"], 0)))
	switch m[2] {
	case "api":
		b.APICertificate = apiCertificate(root, spiffe("node/"+signed), key, life)
	case "identity":
		b.IdentityIssuer = issuerBy(root, RoleIdentity, signed, key, life)
		s.names[m[3]] = sha256Hex(b.IdentityIssuer)
	case "grant":
		b.GrantIssuer = issuerBy(root, RoleGrant, signed, key, life)
		s.names[m[3]] = sha256Hex(b.GrantIssuer)
	}
	s.do(m[0], b, o, want)
}

// publishes brings a roots document: roots=0,1 retired=2 denied=i1 signed=0,1.
func (s *scenario) publishes(m []string, want expectedOutcome) {
	o, role := options(m[3]), Role(m[1])
	d := trust.Document{TrustDomain: domainOf(role), Sequence: s.number(m[2], 0), Issued: epochStart.Truncate(time.Second)}
	for _, r := range s.roots(role, o["roots"]) {
		d.Roots = append(d.Roots, r.cert)
	}
	for _, r := range s.roots(role, o["retired"]) {
		d.Retired = append(d.Retired, trust.ID(r.cert))
	}
	slices.Sort(d.Retired)
	if o["denied"] != "" {
		d.Denied = []string{s.issuer(o["denied"], role)}
	}
	text := signDocument(d, s.roots(role, o["signed"]))
	s.do(m[0], SetRoots{Document: text}, o, want)
}

// roots are those of a list of numbers.
func (s *scenario) roots(role Role, list string) []pair {
	var all []pair
	for n := range strings.FieldsFuncSeq(list, func(r rune) bool { return r == ',' }) {
		all = append(all, testRoot(role, int(s.number(n, 0))))
	}
	return all
}

func (s *scenario) expectRoots(m []string, _ expectedOutcome) {
	role := Role(m[0])
	r, err := Read(s.w.a).Roots(role)
	if err != nil {
		s.fatalf("%v", err)
	}
	var got []string
	for _, der := range r.InForce {
		for n := range 10 {
			if slices.Equal(testRoot(role, n).cert.Raw, der) {
				got = append(got, strconv.Itoa(n))
			}
		}
	}
	if text := strings.Join(got, " ") + " at " + strconv.FormatUint(r.Sequence, 10); text != m[1] {
		s.fatalf("they are %s", text)
	}
}

// rootsDocument says that roots are in force, signed by the first.
func rootsDocument(role Role, sequence uint64, roots ...pair) []byte {
	d := trust.Document{TrustDomain: domainOf(role), Sequence: sequence, Issued: epochStart}
	for _, r := range roots {
		d.Roots = append(d.Roots, r.cert)
	}
	return signDocument(d, roots[:1])
}

func signDocument(d trust.Document, signers []pair) []byte {
	statement, err := d.Statement()
	if err != nil {
		panic(err)
	}
	digest := sha256.Sum256(statement)
	for _, r := range signers {
		value, err := r.key.Sign(nil, digest[:], crypto.SHA256)
		if err != nil {
			panic(err)
		}
		d.Signatures = append(d.Signatures, trust.Signature{Root: trust.ID(r.cert), Value: value})
	}
	text, err := d.Encode()
	if err != nil {
		panic(err)
	}
	return text
}
