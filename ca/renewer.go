package ca

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/hallpass/hallpass/trust"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// MinRenewedLife is the least that Renew gives an issuer: below it, the backdating
// alone would make its successor due.
const MinRenewedLife = 2 * offlineBackdate

// triesAtRenewal is how often one node's certificates are signed in the time in
// which they are signed once when nothing goes wrong.
const triesAtRenewal = 3

const lockFile = "renewer.lock"

// ErrPaced is returned when a node's certificates were signed so lately, and so
// often, that signing them again would not be renewal.
var ErrPaced = errors.New("ca: signed too often")

// RenewAt is when a node's certificates are due for their successors: a little
// before half of the life of whichever is first, so that a node that warns at half
// says that nobody came.
func (c NodeCertificates) RenewAt() time.Time {
	at := func(cert *x509.Certificate) time.Time {
		return cert.NotBefore.Add(renewAfter(cert.NotAfter.Sub(cert.NotBefore)))
	}
	return earliest(at(c.IdentityIssuer), at(c.GrantIssuer), at(c.APICertificate))
}

func renewAfter(life time.Duration) time.Duration { return life / 20 * 9 }

// Renewer renews the certificates of a cluster's nodes from what an offline folder
// says, with roots whose keys are in a KMS. It takes nothing from a node: what it
// signs has the keys and the names of what was signed last, here, for a member in
// the manifest. Another key comes in by SignNodes or RenewNodes, so by somebody
// who has compared it. A folder has one Renewer at a time.
//
// It is not safe for concurrent use, but for Close.
type Renewer struct {
	off      *offline
	manifest Manifest
	signed   signedHere
	lock     *os.File
	once     sync.Once
}

// OpenRenewer reads the folder as it is now. Keys are looked for when they have to
// sign.
func OpenRenewer(dir string, open OpenKMS) (*Renewer, error) {
	lock, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, secretMode)
	if err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	r := &Renewer{lock: lock}
	if err := r.read(dir, open); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

func (r *Renewer) read(dir string, open OpenKMS) (err error) {
	if err := syscall.Flock(int(r.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return fmt.Errorf("%w: another process renews from %s", ErrExists, dir)
	}
	if r.off, err = openOffline(dir, open); err != nil {
		return err
	}
	if r.manifest, err = LoadManifest(filepath.Join(dir, ManifestFile)); err != nil {
		return err
	}
	r.signed, err = readJournal(dir)
	return err
}

// Close lets go of the KMS and of the folder.
func (r *Renewer) Close() {
	r.once.Do(func() {
		if r.off != nil {
			r.off.close()
		}
		_ = r.lock.Close() // and so the lock
	})
}

// Manifest is the folder's.
func (r *Renewer) Manifest() Manifest { return r.manifest }

// IdentityRoots are those in force.
func (r *Renewer) IdentityRoots() []*x509.Certificate { return r.off.identities.set.Roots() }

// Last is what these roots signed last for a member. The error wraps ErrUntrusted
// when they did not, whatever lies in the folder.
func (r *Renewer) Last(node string) (NodeCertificates, error) {
	entry, ok := r.manifest.Node(node)
	if !ok {
		return NodeCertificates{}, fmt.Errorf("%w: node %q is not in the manifest", ErrInvalid, node)
	}
	c, err := lastOf(r.off.dir, entry)
	if err != nil {
		return c, err
	}
	return c, r.check(c)
}

// check looks at certificates as a thief of the folder, but not of the KMS, would
// have them: of his own making, or another node's, or signed elsewhere.
func (r *Renewer) check(c NodeCertificates) error {
	for _, i := range []struct {
		cert  *x509.Certificate
		role  Role
		td    spiffeid.TrustDomain
		roots roots
	}{{c.IdentityIssuer, RoleIdentity, r.off.identityTD, r.off.identities}, {c.GrantIssuer, RoleGrants, r.off.grants, r.off.grantRoots}} {
		if err := checkIssuer(i.cert, i.roots.certificates(), i.role, i.td); err != nil {
			return fmt.Errorf("%w: the %s issuer of node %q: %w", ErrUntrusted, i.role, c.Node, err)
		}
		if want := issuerName(i.td, c.Node, i.role); i.cert.Subject.CommonName != want {
			return fmt.Errorf("%w: the %s issuer of node %q is %q", ErrUntrusted, i.role, c.Node, i.cert.Subject.CommonName)
		}
	}
	id, err := VerifyIdentity([]*x509.Certificate{c.APICertificate}, r.off.identities.certificates(), r.off.identityTD, c.APICertificate.NotBefore)
	if err != nil || id != nodeID(r.off.identityTD, c.Node) {
		return fmt.Errorf("%w: the API certificate of node %q: of %s, %w", ErrUntrusted, c.Node, id, err)
	}
	for _, cert := range []*x509.Certificate{c.IdentityIssuer, c.GrantIssuer, c.APICertificate} {
		root, ok := r.off.rootOf(cert)
		if !ok || !r.signed.has(cert, trust.ID(root.cert)) {
			return fmt.Errorf("%w: %q of node %q is not in %s: it was not signed with this folder", ErrUntrusted, cert.Subject.CommonName, c.Node, journalFile)
		}
	}
	return nil
}

// rootOf is the root that signed a certificate.
func (o *offline) rootOf(cert *x509.Certificate) (heldRoot, bool) {
	for _, h := range slices.Concat(o.identities.held, o.grantRoots.held) {
		if cert.CheckSignatureFrom(h.cert) == nil {
			return h, true
		}
	}
	return heldRoot{}, false
}

// Denied reports whether a roots document of the folder took one of these out of
// use.
func (r *Renewer) Denied(c NodeCertificates) bool {
	for _, i := range []struct {
		cert  *x509.Certificate
		roots roots
	}{{c.IdentityIssuer, r.off.identities}, {c.GrantIssuer, r.off.grantRoots}} {
		d, _ := i.roots.set.Document()
		if slices.Contains(d.Denied, trust.ID(i.cert)) {
			return true
		}
	}
	return false
}

// RootGone reports whether a root that signed these is not in force any more.
func (r *Renewer) RootGone(c NodeCertificates) bool {
	for _, i := range []struct {
		cert  *x509.Certificate
		roots roots
	}{{c.IdentityIssuer, r.off.identities}, {c.GrantIssuer, r.off.grantRoots}} {
		root, ok := r.off.rootOf(i.cert)
		if !ok || !slices.ContainsFunc(i.roots.set.Roots(), root.cert.Equal) {
			return true
		}
	}
	return false
}

// Renew signs the successors of what was signed last for a member, and keeps them
// in RenewedDir. They are signed by the root that signed what they succeed while
// that is in force: when a cluster goes over to another is its operators' to say,
// with RenewNodes. The error wraps ErrPaced, ErrRefused, ErrUntrusted or
// ErrKeyOnDisk when it may not be, and otherwise says what the KMS said.
func (r *Renewer) Renew(node string, life time.Duration, now time.Time) (NodeCertificates, error) {
	if life < MinRenewedLife || life > IssuerLife {
		return NodeCertificates{}, fmt.Errorf("%w: issuers live %s to %s, not %s", ErrInvalid, MinRenewedLife, IssuerLife, life)
	}
	last, err := r.Last(node)
	if err != nil {
		return NodeCertificates{}, err
	}
	if r.Denied(last) {
		return NodeCertificates{}, fmt.Errorf("%w: an issuer of node %q was denied: it needs new keys", ErrRefused, node)
	}
	// A defect of whoever calls, or a clock that jumps, must not make a drawer full
	// of issuers: what was signed lately is counted in the journal, which outlives
	// a restart.
	name := issuerName(r.off.grants, node, RoleGrants)
	if n := r.signed.since(name, now.Add(-renewAfter(life))); n >= triesAtRenewal {
		return NodeCertificates{}, fmt.Errorf("%w: %d times in %s for node %q", ErrPaced, n, renewAfter(life), node)
	}
	var by signers
	if by.identity, err = r.successorRoot(last.IdentityIssuer, r.off.identities); err != nil {
		return NodeCertificates{}, err
	}
	if by.grants, err = r.successorRoot(last.GrantIssuer, r.off.grantRoots); err != nil {
		return NodeCertificates{}, err
	}
	c, err := r.off.renewed(nodeSpec{
		id: node, identity: last.IdentityIssuer.PublicKey, grants: last.GrantIssuer.PublicKey, api: last.APICertificate.PublicKey,
		dnsNames: last.APICertificate.DNSNames, ips: last.APICertificate.IPAddresses,
		domains: last.IdentityIssuer.PermittedDNSDomains, ranges: rangesOf(last.IdentityIssuer),
		now: now, life: life, apiUntil: last.APICertificate.NotAfter,
	}, by)
	if err != nil {
		return NodeCertificates{}, err
	}
	r.signed.times[name] = append(r.signed.times[name], now)
	for _, cert := range []*x509.Certificate{c.IdentityIssuer, c.GrantIssuer, c.APICertificate} {
		if root, ok := r.off.rootOf(cert); ok {
			r.signed.issuer[hashOf(cert.RawTBSCertificate).String()] = trust.ID(root.cert)
		}
	}
	return c, nil
}

// rangesOf are the addresses that an issuer may name; none is none, and not the
// default.
func rangesOf(c *x509.Certificate) []*net.IPNet {
	return append([]*net.IPNet{}, c.PermittedIPRanges...)
}

// successorRoot is the root that signs the successor of a certificate.
func (r *Renewer) successorRoot(cert *x509.Certificate, all roots) (*authority, error) {
	inForce := all.set.Roots()
	root, ok := r.off.rootOf(cert)
	if !ok || !slices.ContainsFunc(inForce, root.cert.Equal) {
		newest := inForce[len(inForce)-1]
		at := slices.IndexFunc(all.held, func(h heldRoot) bool { return h.cert.Equal(newest) })
		if at < 0 {
			return nil, fmt.Errorf("%w: that of %q", ErrRootKey, newest.Subject.CommonName)
		}
		root = all.held[at]
	}
	return r.kmsAuthority(root)
}

// kmsAuthority refuses a root with its key in the folder: a process that is on the
// network all day is no place for one.
func (r *Renewer) kmsAuthority(h heldRoot) (*authority, error) {
	if h.kms == nil {
		return nil, fmt.Errorf("%w: that of %q; a signer is for roots in a KMS: go over to such with ca rotate --kms, and move the nodes with ca sign-node --renew",
			ErrKeyOnDisk, h.cert.Subject.CommonName)
	}
	return r.off.authority(h)
}

// CheckKeys asks the KMS for the key of each root in force that it has, and reports
// whether they are those of the certificates. The error wraps ErrKeyOnDisk when it
// has none of a trust domain's.
func (r *Renewer) CheckKeys() error {
	for _, all := range []roots{r.off.identities, r.off.grantRoots} {
		found := false
		for _, h := range all.held {
			if h.kms == nil || !slices.ContainsFunc(all.set.Roots(), h.cert.Equal) {
				continue
			}
			if _, err := r.kmsAuthority(h); err != nil {
				return err
			}
			found = true
		}
		if !found {
			return fmt.Errorf("%w: that of %s", ErrKeyOnDisk, all.set.TrustDomain())
		}
	}
	return nil
}

// Identity signs an identity of the renewing process itself, by the oldest root in
// force whose key the KMS has: a newer one may not have been published yet.
func (r *Renewer) Identity(path string, pub crypto.PublicKey, ttl time.Duration, now time.Time) ([]*x509.Certificate, error) {
	id, err := spiffeid.FromPath(r.off.identityTD, path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	for _, root := range r.off.identities.set.Roots() {
		for _, h := range r.off.identities.held {
			if h.kms == nil || !h.cert.Equal(root) {
				continue
			}
			a, err := r.kmsAuthority(h)
			if err != nil {
				return nil, err
			}
			template, err := IdentitySpec{ID: id, PublicKey: pub, Now: now, TTL: ttl, Skew: offlineBackdate}.template(a.cert, r.off.identityTD)
			if err != nil {
				return nil, err
			}
			cert, err := r.off.sign(a, template, now)
			return []*x509.Certificate{cert}, err
		}
	}
	return nil, fmt.Errorf("%w: those of %s", ErrKeyOnDisk, r.off.identityTD)
}
