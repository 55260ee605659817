package proxy

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/hallpass/hallpass/trust"
)

// ErrMaterial is returned when a certificate, key or bundle file cannot be used.
var ErrMaterial = errors.New("bad certificate material")

// material is what a handshake needs. It is never changed, only replaced.
type material struct {
	cert     tls.Certificate
	identity *x509bundle.Bundle
	grants   *x509bundle.Bundle
	// sets are where the two bundles come from: the roots of the files, and the
	// documents that followed from them.
	sets [2]trust.Set // identity, grants
	// chains are those that were verified with the two bundles, and with no others.
	chains *chainCache
}

// documents is how many roots documents have been in force, of both domains.
func (m *material) documents() uint64 { return m.sets[0].Sequence() + m.sets[1].Sequence() }

// denies says whether a document takes one of the issuers out of use.
func (m *material) denies(issuers []string) bool {
	return slices.ContainsFunc(issuers, func(id string) bool { return m.sets[0].Denies(id) || m.sets[1].Denies(id) })
}

// keeper holds the newest usable material and watches its files. A file that
// turns broken or empty changes nothing: what was good stays.
type keeper struct {
	cfg *config
	log *slog.Logger
	cur atomic.Pointer[material]

	mu       sync.Mutex // owns what follows; held through a whole reload
	seen     [5][]byte  // contents at the last look: certificate, key, identity, grants, roots documents
	complain map[string]bool
	// What was good of the files, which stays when they turn bad.
	anchors   [2]*x509bundle.Bundle // identity, grants
	documents []trust.Document
}

// newKeeper loads everything, and refuses to start on anything broken, empty or expired.
func newKeeper(cfg *config) (*keeper, error) {
	k := &keeper{cfg: cfg, log: cfg.log, complain: make(map[string]bool)}
	raw, err := k.read()
	if err != nil {
		return nil, err
	}
	m := &material{chains: newChainCache()}
	found := make(map[string]error)
	k.trust(m, raw, found)
	var wrong []error // all of it, always in one order
	for _, key := range slices.Sorted(maps.Keys(found)) {
		wrong = append(wrong, found[key])
	}
	if err := errors.Join(wrong...); err != nil {
		return nil, err
	}
	if m.cert, err = k.keyPair(raw[0], raw[1], m.identity); err != nil {
		return nil, err
	}
	k.seen = raw
	k.cur.Store(m)
	return k, nil
}

func (k *keeper) read() (raw [5][]byte, err error) {
	if k.cfg.files.roots != "" {
		raw[4], err = os.ReadFile(k.cfg.files.roots)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return raw, fmt.Errorf("%w: %w", ErrMaterial, err)
		}
	}
	for i, path := range []string{k.cfg.files.certificate, k.cfg.files.key, k.cfg.files.identity, k.cfg.files.grants} {
		if raw[i], err = os.ReadFile(path); err != nil {
			return raw, fmt.Errorf("%w: %w", ErrMaterial, err)
		}
	}
	return raw, nil
}

// reload looks at the files again. It returns whether a root was taken out, or an
// issuer denied by a document, so that the caller ends the connections that stood
// on it, and the mistakes found, each of which left the old value in place.
func (k *keeper) reload() (shrunk bool, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	raw, err := k.read()
	if err != nil {
		return false, k.report(map[string]error{"files": err}, false)
	}
	changed := !slices.EqualFunc(raw[:], k.seen[:], bytes.Equal)
	if !changed && len(k.complain) == 0 {
		return false, nil
	}
	old := k.cur.Load()
	next := *old
	next.chains = newChainCache()
	found := make(map[string]error)
	k.trust(&next, raw, found)
	if next.cert, err = k.keyPair(raw[0], raw[1], next.identity); err != nil {
		next.cert, found["certificate"] = old.cert, err
	}
	k.seen = raw
	k.cur.Store(&next)
	k.logChanges(old, &next)
	shrunk = !within(old.identity, next.identity) || !within(old.grants, next.grants) || next.documents() != old.documents()
	return shrunk, k.report(found, changed)
}

func (k *keeper) logChanges(old, next *material) {
	if old.cert.Leaf != next.cert.Leaf && !old.cert.Leaf.Equal(next.cert.Leaf) {
		k.log.Info("certificate reloaded", slog.Time("not_after", next.cert.Leaf.NotAfter))
	}
	if !old.identity.Equal(next.identity) {
		k.log.Info("identity bundle reloaded", slog.Int("roots", len(next.identity.X509Authorities())))
	}
	if !old.grants.Equal(next.grants) {
		k.log.Info("grants bundle reloaded", slog.Int("roots", len(next.grants.X509Authorities())))
	}
}

// report logs a mistake once, not at every look, and forgets it when it is gone.
func (k *keeper) report(found map[string]error, changed bool) error {
	var all []error
	for what, err := range found {
		all = append(all, err)
		if changed || !k.complain[what] {
			k.log.Error("new certificate material refused, keeping what was there", slog.String("what", what), slog.Any("error", err))
			k.complain[what] = true
		}
	}
	for what := range k.complain {
		if _, still := found[what]; !still {
			delete(k.complain, what)
		}
	}
	return errors.Join(all...)
}

// keyPair builds the service's own SVID, which must be of this very service: a
// proxy that showed another's name would be trusted as that other.
func (k *keeper) keyPair(certPEM, keyPEM []byte, roots *x509bundle.Bundle) (tls.Certificate, error) {
	fail := func(err error) (tls.Certificate, error) {
		return tls.Certificate{}, fmt.Errorf("%w: %s: %w", ErrMaterial, k.cfg.files.certificate, err)
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return fail(err)
	}
	chain := make([]*x509.Certificate, len(cert.Certificate))
	for i, der := range cert.Certificate {
		if chain[i], err = x509.ParseCertificate(der); err != nil {
			return fail(err)
		}
	}
	cert.Leaf = chain[0]
	now := wall(k.cfg.now)
	if !now.Before(cert.Leaf.NotAfter) {
		return fail(fmt.Errorf("expired at %s", cert.Leaf.NotAfter.UTC().Format(time.RFC3339)))
	}
	id, _, err := x509svid.Verify(chain, roots, x509svid.WithTime(now))
	if err != nil {
		return fail(err)
	}
	if id != k.cfg.self {
		return fail(fmt.Errorf("is of %s; this proxy needs %s", id, k.cfg.self))
	}
	if !slices.Contains(cert.Leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth) {
		return fail(errors.New("its extended key usage has no serverAuth"))
	}
	return cert, nil
}

// parseBundle reads PEM strictly. A lenient reader takes a half-written file for
// a smaller bundle, and a file without blocks for one that trusts nobody yet.
func parseBundle(td spiffeid.TrustDomain, path string, data []byte) (*x509bundle.Bundle, error) {
	fail := func(err error) (*x509bundle.Bundle, error) {
		return nil, fmt.Errorf("%w: %s: %w", ErrMaterial, path, err)
	}
	var roots []*x509.Certificate
	begins := bytes.Count(data, []byte("-----BEGIN "))
	for rest := data; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return fail(fmt.Errorf("holds a %q block; a bundle holds certificates", block.Type))
		}
		root, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return fail(err)
		}
		if !root.IsCA || !root.BasicConstraintsValid {
			return fail(fmt.Errorf("certificate of serial %x is no CA", root.SerialNumber))
		}
		if !goodRootKey(root.PublicKey) {
			return fail(fmt.Errorf("certificate of serial %x has a weak key", root.SerialNumber))
		}
		roots = append(roots, root)
	}
	if begins != len(roots) {
		return fail(errors.New("is cut off or holds a broken PEM block"))
	}
	if len(roots) == 0 {
		return fail(errors.New("is empty, which would admit nobody"))
	}
	return x509bundle.FromX509Authorities(td, roots), nil
}

func goodRootKey(pub any) bool {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		return k.Curve.Params().BitSize >= 256
	case *rsa.PublicKey:
		return k.N.BitLen() >= 2048
	case ed25519.PublicKey:
		return true
	default:
		return false
	}
}

// apart refuses a key that is a root of both domains: whoever signs identities
// with it could then sign grants too.
func apart(identity, grants *x509bundle.Bundle) error {
	for _, a := range identity.X509Authorities() {
		for _, b := range grants.X509Authorities() {
			if bytes.Equal(a.RawSubjectPublicKeyInfo, b.RawSubjectPublicKeyInfo) {
				return fmt.Errorf("%w: one key is a root of %s and of %s", ErrMaterial, identity.TrustDomain(), grants.TrustDomain())
			}
		}
	}
	return nil
}

// within tells whether every root of old is still one of next.
func within(old, next *x509bundle.Bundle) bool {
	return !slices.ContainsFunc(old.X509Authorities(), func(c *x509.Certificate) bool { return !next.HasX509Authority(c) })
}

// wall is the time of day without a monotonic reading, which stands still while
// a laptop is suspended and would stretch certificates by the nap.
func wall(now func() time.Time) time.Time { return now().Round(0) }
