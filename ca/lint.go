package ca

import (
	"errors"
	"fmt"
	"slices"

	"github.com/zmap/zcrypto/x509"
	"github.com/zmap/zlint/v3/lint"
	_ "github.com/zmap/zlint/v3/lints/rfc" // registers what RFC 5280 and its successors ask
)

// linter reads a certificate once more before its issuer's key is used, with a
// parser and rules that are not ours: a profile that was bent by mistake would
// otherwise be noticed by the first verifier that refuses it, after a serial
// was spent on it, or by none that does not.
type linter struct {
	lints  []*lint.CertificateLint
	config lint.Configuration // of no lint: what each of them makes of an empty file
}

// notOurs are lints that refuse what SPIFFE allows.
func notOurs() []string {
	return []string{
		// A trust domain is no DNS name, though it is written where a URI has its
		// host (SPIFFE-ID, section 2.1): "acme" and "acme_corp" are good ones.
		"e_ext_san_uri_host_not_fqdn_or_ip",
		"e_name_constraint_not_fqdn",
	}
}

// newLinter takes the lints of RFC 5280 and of the ones that amend it. Those of
// the CA/Browser Forum and of root programs are about the public web: they ask
// for names, policies and revocation addresses that an SVID has not.
func newLinter() linter {
	l := linter{config: lint.NewEmptyConfig()}
	for _, one := range lint.GlobalRegistry().CertificateLints().Lints() {
		if slices.Contains([]lint.LintSource{lint.RFC5280, lint.RFC5480, lint.RFC8813}, one.Source) &&
			!slices.Contains(notOurs(), one.Name) {
			l.lints = append(l.lints, one)
		}
	}
	return l
}

// check refuses a certificate of which a lint says that it is an error, and one
// that a lint could not read. Warnings and notices are left to people.
func (l linter) check(der []byte) error {
	if len(l.lints) == 0 {
		return errors.New("ca: there are no lints") // nothing checked is nothing found
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return fmt.Errorf("%w: lint: %w", ErrProfile, err)
	}
	for _, one := range l.lints {
		if res := l.run(one, c); res != nil && res.Status >= lint.Error {
			return fmt.Errorf("%w: lint %s: %s %s", ErrProfile, one.Name, one.Description, res.Details)
		}
	}
	return nil
}

// run is what lint.CertificateLint.Execute does with a lint of these sources, but
// for a result that says that the lint does not apply, which most do not: nil.
func (l linter) run(one *lint.CertificateLint, c *x509.Certificate) (res *lint.LintResult) {
	defer func() {
		// A lint that cannot read a certificate has not found it good.
		if p := recover(); p != nil {
			res = &lint.LintResult{Status: lint.Fatal, Details: fmt.Sprintf("it panicked: %v", p)}
		}
	}()
	rule := one.Lint()
	if err := l.config.MaybeConfigure(rule, one.Name); err != nil {
		return &lint.LintResult{Status: lint.Fatal, Details: err.Error()}
	}
	if !rule.CheckApplies(c) || !one.CheckEffective(c) {
		return nil
	}
	return rule.Execute(c)
}
