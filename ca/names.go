package ca

import (
	"crypto/x509"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// validLabel matches one lower-case DNS label.
func validLabel(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	return strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

// validDNSName matches a lower-case host name without a trailing dot. Wildcards
// are none: a service's certificate names the hosts of that service, one by one.
func validDNSName(s string) bool {
	if len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if !validLabel(label) {
			return false
		}
	}
	// "127.0.0.1" as a DNS name is read as an address by some verifiers.
	last := s[strings.LastIndexByte(s, '.')+1:]
	return strings.Trim(last, "0123456789") != ""
}

// checkNames refuses names that two TLS clients could read in two ways.
func checkNames(names []string, ips []net.IP) error {
	for i, name := range names {
		if !validDNSName(name) {
			return fmt.Errorf("%w: %q is not a lower-case DNS name", ErrInvalid, name)
		}
		if slices.Contains(names[:i], name) {
			return fmt.Errorf("%w: the DNS name %q twice", ErrInvalid, name)
		}
	}
	for i, ip := range ips {
		if ip.To16() == nil || ip.IsUnspecified() || ip.IsMulticast() {
			return fmt.Errorf("%w: %q is not the address of a host", ErrInvalid, ip)
		}
		if slices.ContainsFunc(ips[:i], ip.Equal) {
			return fmt.Errorf("%w: the address %s twice", ErrInvalid, ip)
		}
	}
	return nil
}

// permitted says whether an issuer's name constraints allow the names, as
// crypto/x509 would say of the signed certificate.
func permitted(issuer *x509.Certificate, names []string, ips []net.IP) error {
	for _, name := range names {
		under := func(domain string) bool {
			return domain == "" || name == domain || strings.HasSuffix(name, "."+strings.TrimPrefix(domain, "."))
		}
		allowed := len(issuer.PermittedDNSDomains) == 0 || slices.ContainsFunc(issuer.PermittedDNSDomains, under)
		if !allowed || slices.ContainsFunc(issuer.ExcludedDNSDomains, under) {
			return fmt.Errorf("%w: this issuer may name hosts under %s, not %q", ErrInvalid, orNone(issuer.PermittedDNSDomains), name)
		}
	}
	for _, ip := range ips {
		within := func(n *net.IPNet) bool { return n.Contains(ip) }
		allowed := len(issuer.PermittedIPRanges) == 0 || slices.ContainsFunc(issuer.PermittedIPRanges, within)
		if !allowed || slices.ContainsFunc(issuer.ExcludedIPRanges, within) {
			return fmt.Errorf("%w: this issuer may name addresses in %v, not %s", ErrInvalid, issuer.PermittedIPRanges, ip)
		}
	}
	return nil
}

func orNone(list []string) string {
	if len(list) == 0 {
		return "no domain"
	}
	return strings.Join(list, ", ")
}

// checkTrustDomains refuses trust domains that cannot stand in a name constraint
// or cannot be told apart.
func checkTrustDomains(identity, grants spiffeid.TrustDomain) error {
	for _, td := range []spiffeid.TrustDomain{identity, grants} {
		if !validDNSName(td.Name()) {
			return fmt.Errorf("%w: the trust domain %q is not a lower-case DNS name", ErrInvalid, td.Name())
		}
	}
	if identity == grants {
		// In one domain, whoever admits "any member" would admit a grant
		// certificate as its subject.
		return fmt.Errorf("%w: identities and grants need two trust domains, not %q twice", ErrInvalid, identity.Name())
	}
	return nil
}

// checkAddress takes "host:port" and returns the host.
func checkAddress(address string) (host string, err error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", fmt.Errorf("%w: the address %q is not host:port", ErrInvalid, address)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || strconv.FormatUint(n, 10) != port {
		return "", fmt.Errorf("%w: the port of %q is not 1 to 65535", ErrInvalid, address)
	}
	if _, err := netip.ParseAddr(host); err != nil && !validDNSName(host) {
		return "", fmt.Errorf("%w: the host of %q is neither a DNS name nor an address", ErrInvalid, address)
	}
	return host, nil
}

// validName matches the names of nodes, persons and groups: one SPIFFE path
// segment in lower case that starts with a letter or a digit.
func validName(s string) bool {
	const alnum = "abcdefghijklmnopqrstuvwxyz0123456789"
	return s != "" && len(s) <= 63 && strings.IndexByte(alnum, s[0]) >= 0 && strings.Trim(s, alnum+"._-") == ""
}
