package main

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallpass/hallpass/ca"
	"github.com/hallpass/hallpass/emergency"
	"github.com/hallpass/hallpass/grant"
)

// maxInspect bounds the file that is inspected.
const maxInspect = 4 << 20

func newCertCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cert",
		Short: "Certificates on disk: inspect",
	}
	cmd.AddCommand(&cobra.Command{
		Use:   "inspect FILE",
		Short: "Say in words what a certificate opens, for whom and until when",
		Long: `Say in words what a certificate opens, for whom and until when. It works offline,
on grant certificates, identities, issuers and roots, one or several in a file,
PEM or DER; "-" reads standard input.

It says what the file says. Whether to believe it is for whoever has the roots.`,
		Args: exactArgs("FILE"),
		RunE: func(_ *cobra.Command, args []string) error { return a.certInspect(args[0]) },
	})
	return cmd
}

// The kinds of certificate that `cert inspect` tells apart.
const (
	certGrant     = "grant"
	certIdentity  = "identity"
	certIssuer    = "issuer"
	certEmergency = "emergency issuer"
	certRoot      = "root"
	certOther     = "other"
)

// inspected is one certificate in words.
type inspected struct {
	Kind        string                `json:"kind"`
	SPIFFEID    string                `json:"spiffe_id,omitempty"`
	Subject     string                `json:"subject,omitempty"` // who: of a grant, its holder
	Service     string                `json:"service,omitempty"`
	Permissions []inspectedPermission `json:"permissions,omitempty"`
	GrantID     string                `json:"grant_id,omitempty"`
	DNSNames    []string              `json:"dns_names,omitempty"`
	IPAddresses []string              `json:"ip_addresses,omitempty"`
	State       string                `json:"state"` // valid, expired or "not yet valid"
	NotBefore   time.Time             `json:"not_before"`
	NotAfter    time.Time             `json:"not_after"`
	Issuer      string                `json:"issuer"`
	// IssuerID is the issuer's id, where its certificate is in the file and its signature holds.
	IssuerID string `json:"issuer_id,omitempty"`
	// Emergency is true of an emergency issuer, and of what one in the file signed.
	Emergency bool     `json:"emergency,omitempty"`
	Serial    string   `json:"serial"`
	ID        string   `json:"id"`  // hex SHA-256 of the certificate
	Key       string   `json:"key"` // hex SHA-256 of its public key
	Usage     []string `json:"usage,omitempty"`
	Problems  []string `json:"problems,omitempty"` // why no verifier of ours would take it
}

type inspectedPermission struct {
	Text  string `json:"text"`
	Words string `json:"words"`
}

func (a *app) certInspect(file string) error {
	certs, err := a.readCertificates(file)
	if err != nil {
		return err
	}
	all := make([]inspected, len(certs))
	for i, cert := range certs {
		all[i] = inspect(cert, certs, a.now())
	}
	return a.print(map[string]any{"certificates": all}, func(w *tabular) {
		for i, c := range all {
			if i > 0 {
				w.line("")
			}
			c.write(w)
		}
	})
}

// readCertificates reads all certificates of a file, and says what the file holds when it holds none.
func (a *app) readCertificates(file string) ([]*x509.Certificate, error) {
	in := a.stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer func() { _ = f.Close() }() // read only: nothing to lose
		in = f
	}
	data, err := io.ReadAll(io.LimitReader(in, maxInspect+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxInspect {
		return nil, fmt.Errorf("%s has more than %d bytes: that is no certificate", file, maxInspect)
	}
	if !bytes.Contains(data, []byte("-----BEGIN ")) {
		certs, err := x509.ParseCertificates(data)
		if err != nil || len(certs) == 0 {
			return nil, fmt.Errorf("%s holds no certificate, neither PEM nor DER", file)
		}
		return certs, nil
	}
	var certs []*x509.Certificate
	var others []string
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			others = append(others, strings.ToLower(block.Type))
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: certificate %d: %w", file, len(certs)+1, err)
		}
		certs = append(certs, cert)
	}
	switch {
	case len(certs) > 0:
		return certs, nil
	case len(others) > 0:
		return nil, fmt.Errorf("%s holds no certificate, but: %s", file, strings.Join(others, ", "))
	default:
		return nil, fmt.Errorf("%s holds broken PEM", file)
	}
}

func inspect(cert *x509.Certificate, file []*x509.Certificate, now time.Time) inspected {
	c := inspected{
		Kind:      certOther,
		DNSNames:  cert.DNSNames,
		State:     "valid",
		NotBefore: cert.NotBefore,
		NotAfter:  cert.NotAfter,
		Issuer:    cert.Issuer.String(),
		Serial:    ca.SerialText(cert.SerialNumber),
		ID:        hexSum(cert.Raw),
		Key:       hexSum(cert.RawSubjectPublicKeyInfo),
		Usage:     usageWords(cert),
	}
	for _, ip := range cert.IPAddresses {
		c.IPAddresses = append(c.IPAddresses, ip.String())
	}
	switch {
	case now.Before(cert.NotBefore):
		c.State = "not yet valid"
	case now.After(cert.NotAfter):
		c.State = "expired"
	}
	for _, other := range file {
		if cert.CheckSignatureFrom(other) == nil {
			c.IssuerID = hexSum(other.Raw)
			c.Emergency = emergency.Marked(other)
		}
	}
	c.name(cert)
	c.Emergency = c.Emergency || c.Kind == certEmergency
	return c
}

// name says whose certificate it is, and what it opens.
func (c *inspected) name(cert *x509.Certificate) {
	problem := func(format string, args ...any) { c.Problems = append(c.Problems, fmt.Sprintf(format, args...)) }
	c.Subject = cert.Subject.String()
	switch {
	case cert.IsCA && cert.CheckSignatureFrom(cert) == nil:
		c.Kind = certRoot
	case emergency.Marked(cert):
		c.Kind = certEmergency
		if err := emergency.CheckMark(cert); err != nil {
			problem("%v", err)
		}
	case cert.IsCA:
		c.Kind = certIssuer
	}
	if len(cert.URIs) != 1 {
		if c.Kind == certOther {
			problem("it has %d URI names, a SPIFFE certificate has exactly one", len(cert.URIs))
		}
		return
	}
	id, err := spiffeid.FromURI(cert.URIs[0])
	if err != nil {
		problem("its URI is no SPIFFE ID: %v", err)
		return
	}
	c.SPIFFEID = id.String()
	if cert.IsCA {
		return
	}
	c.Kind, c.Subject = certIdentity, id.String()
	if id.Path() == "" {
		problem("its SPIFFE ID names a trust domain and no member of it")
	}
	g, err := grant.ParseID(id.String(), id.TrustDomain())
	if err != nil {
		if strings.HasPrefix(id.Path(), "/v1/") {
			problem("it looks like a grant and is none: %v", err)
		}
		return
	}
	c.Kind, c.Subject = certGrant, g.Subject().String()
	c.Service, c.GrantID = g.Scope().Service(), g.GrantID()
	for _, p := range g.Scope().Permissions() {
		c.Permissions = append(c.Permissions, inspectedPermission{Text: p.String(), Words: p.Words()})
	}
}

func (c inspected) write(w *tabular) {
	titles := map[string]string{
		certGrant:     "grant certificate: it opens what is said here, at this service, and says nothing else of its holder",
		certIdentity:  "identity: it says who someone is, and opens nothing by itself",
		certIssuer:    "issuer: it signs certificates",
		certEmergency: "EMERGENCY issuer: custodians sign grants with it while there is no cluster; only services that say emergency: allow take them",
		certRoot:      "root: it signs issuers",
		certOther:     "certificate of another kind",
	}
	w.line("%s", titles[c.Kind])
	if c.Emergency && c.Kind != certEmergency {
		w.line("made in an EMERGENCY, by custodians, while there was no cluster: no approver has seen it")
	}
	w.field("who", c.Subject)
	w.field("service", c.Service)
	for i, p := range c.Permissions {
		name := ""
		if i == 0 {
			name = "may"
		}
		w.row(name, strings.TrimPrefix(p.Words, "may ")+"  ("+p.Text+")")
	}
	w.field("grant", c.GrantID)
	w.field("names", strings.Join(slices.Concat(c.DNSNames, c.IPAddresses), ", "))
	w.field("state", c.State)
	w.field("from", w.when(c.NotBefore))
	w.field("until", w.when(c.NotAfter))
	issuer := c.Issuer
	switch {
	case c.Kind == certRoot:
		issuer = "itself"
	case c.IssuerID != "":
		issuer += ", in this file, and its signature holds"
	}
	w.field("issuer", issuer)
	w.field("serial", c.Serial)
	w.field("usage", strings.Join(c.Usage, ", "))
	if c.SPIFFEID != c.Subject {
		w.field("name", c.SPIFFEID)
	}
	w.field("id", c.ID)
	for _, p := range c.Problems {
		w.field("problem", p)
	}
}

func usageWords(cert *x509.Certificate) []string {
	var words []string
	for _, usage := range cert.ExtKeyUsage {
		switch usage {
		case x509.ExtKeyUsageClientAuth:
			words = append(words, "client")
		case x509.ExtKeyUsageServerAuth:
			words = append(words, "server")
		default:
			words = append(words, fmt.Sprintf("other (%d)", usage))
		}
	}
	if cert.KeyUsage&x509.KeyUsageCertSign != 0 {
		words = append(words, "sign certificates")
	}
	return words
}

func hexSum(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
