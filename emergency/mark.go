package emergency

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// MaxIssuerLife is how long an emergency issuer lives at the most.
const MaxIssuerLife = 366 * 24 * time.Hour

// Unit is the organizational unit in an emergency issuer's subject: for people who
// read certificates. Programs go by the mark.
const Unit = "EMERGENCY"

// ErrIssuer is returned when a certificate is not that of an emergency issuer.
var ErrIssuer = errors.New("not an emergency grant issuer")

// oidMark is the mark's extension. See docs/decisions/0014 for the number.
func oidMark() asn1.ObjectIdentifier { return asn1.ObjectIdentifier{1, 3, 9998, 1, 1} }

// markValue is all that the extension ever holds: a UTF8String.
func markValue() []byte {
	const text = "hallpass emergency grant issuer"
	return append([]byte{asn1.TagUTF8String, byte(len(text))}, text...)
}

// Mark returns the extension that makes an issuer an emergency issuer.
func Mark() pkix.Extension {
	return pkix.Extension{Id: oidMark(), Critical: true, Value: markValue()}
}

// Marked reports whether a certificate has the mark in any form. It is for those
// who refuse: see CheckMark for those who admit.
func Marked(c *x509.Certificate) bool {
	return slices.ContainsFunc(c.Extensions, isMark)
}

func isMark(e pkix.Extension) bool { return e.Id.Equal(oidMark()) }

// CheckMark refuses a certificate without the mark, and one that has it in another
// form than the one: twice, not critical, or with another value. Verifiers that do
// not know a mark that is not critical would take the issuer for a node's.
func CheckMark(c *x509.Certificate) error {
	var all []pkix.Extension
	for _, e := range c.Extensions {
		if isMark(e) {
			all = append(all, e)
		}
	}
	switch {
	case len(all) == 0:
		return fmt.Errorf("%w: %q does not have the mark of one", ErrIssuer, c.Subject.CommonName)
	case len(all) > 1 || !all[0].Critical || !bytes.Equal(all[0].Value, markValue()):
		return fmt.Errorf("%w: %q has its mark in another form", ErrIssuer, c.Subject.CommonName)
	}
	return nil
}

// Understood returns a certificate as crypto/x509 takes one whose mark its caller
// knows; one without the mark, or with a mark in another form, as it is. The
// caller MUST refuse what was verified through it unless emergencies are admitted.
func Understood(c *x509.Certificate) *x509.Certificate {
	if CheckMark(c) != nil {
		return c
	}
	known := *c
	known.UnhandledCriticalExtensions = slices.DeleteFunc(slices.Clone(c.UnhandledCriticalExtensions), oidMark().Equal)
	return &known
}

// CheckIssuer refuses what is not the certificate of an emergency issuer of the
// grants' trust domain td, within all its limits. Who signed it is for the caller
// to check.
func CheckIssuer(c *x509.Certificate, td string) error {
	if err := CheckMark(c); err != nil {
		return err
	}
	key, ok := c.PublicKey.(*ecdsa.PublicKey)
	switch {
	case !c.BasicConstraintsValid || !c.IsCA || c.KeyUsage&x509.KeyUsageCertSign == 0:
		return fmt.Errorf("%w: it may not sign certificates", ErrIssuer)
	case c.MaxPathLen != 0 || !c.MaxPathLenZero:
		return fmt.Errorf("%w: it could make further issuers", ErrIssuer)
	case !strings.HasPrefix(c.Subject.CommonName, NamePrefix(td)) || !slices.Contains(c.Subject.OrganizationalUnit, Unit):
		return fmt.Errorf("%w: its name is %q", ErrIssuer, c.Subject)
	case !ok || key.Curve != elliptic.P256():
		return fmt.Errorf("%w: its key is not ECDSA on P-256", ErrIssuer)
	case c.NotAfter.Sub(c.NotBefore) > MaxIssuerLife:
		return fmt.Errorf("%w: it lives longer than %s", ErrIssuer, MaxIssuerLife)
	case !constrained(c, td):
		// A stolen one could otherwise make identities, or servers.
		return fmt.Errorf("%w: its name constraints are not those of a grant issuer of %s", ErrIssuer, td)
	}
	return nil
}

// NamePrefix is what the common name of each emergency issuer of td begins with.
func NamePrefix(td string) string { return td + " emergency grants issuer " }

// constrained asks for the name constraints of a grant issuer: URIs of exactly td,
// and no name of another kind.
func constrained(c *x509.Certificate, td string) bool {
	none := []string{""}
	var ranges []string
	for _, n := range c.ExcludedIPRanges {
		ranges = append(ranges, n.String())
	}
	return c.PermittedDNSDomainsCritical &&
		slices.Equal(c.PermittedURIDomains, []string{td}) && slices.Equal(c.ExcludedURIDomains, []string{"." + td}) &&
		slices.Equal(c.ExcludedDNSDomains, none) && slices.Equal(c.ExcludedEmailAddresses, none) &&
		slices.Contains(ranges, "0.0.0.0/0") && slices.Contains(ranges, "::/0")
}
