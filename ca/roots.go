package ca

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/hallpass/hallpass/trust"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// RootsFile is the name, in the offline folder, of the roots documents: one a
// line, of both trust domains. It is public.
const RootsFile = "roots.jsonl"

// ErrRootKey is returned when the key of a root that has to sign is not in the
// offline folder.
var ErrRootKey = errors.New("ca: the root's key is not here")

// roots are all roots of one trust domain that a folder has had.
type roots struct {
	name string // of the files: NAME.crt, then NAME-2.crt and so on
	held []heldRoot
	set  trust.Set
}

// heldRoot is a root and where its key is: with authority in the folder, with kms
// in a KMS, with neither nowhere here, as it ought to be once the root is retired.
type heldRoot struct {
	cert      *x509.Certificate
	authority *authority
	kms       *kmsKey
}

// rootFile is the name of the nth root's files, without what follows the dot.
func rootFile(name string, n int) string {
	if n == 1 {
		return name
	}
	return fmt.Sprintf("%s-%d", name, n)
}

func loadDocuments(dir string) ([]trust.Document, error) {
	text, err := readFile(filepath.Join(dir, RootsFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	documents, err := trust.ParseAll(text)
	if err != nil {
		return nil, wrapPath(RootsFile, err)
	}
	return documents, nil
}

func loadRoots(dir, name string, td spiffeid.TrustDomain, documents []trust.Document) (roots, error) {
	r := roots{name: name}
	for n := 1; ; n++ {
		file := rootFile(name, n)
		cert, err := readCertificate(filepath.Join(dir, file+".crt"))
		if n > 1 && errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err != nil {
			return roots{}, err
		}
		if err := checkRoot(cert, td); err != nil {
			return roots{}, fmt.Errorf("%w: %s.crt: %w", ErrInvalid, file, err)
		}
		h, err := loadHeld(dir, file, cert)
		if err != nil {
			return roots{}, err
		}
		r.held = append(r.held, h)
	}
	var behind bool
	if r.set, behind = trust.NewSet(td.Name(), []*x509.Certificate{r.held[0].cert}).Follow(documents); behind {
		return roots{}, fmt.Errorf("%w: %s: the documents of %s do not follow from its first root", ErrInvalid, RootsFile, td)
	}
	return r, nil
}

// certificates are those of all roots, the founding one first.
func (r roots) certificates() []*x509.Certificate {
	var all []*x509.Certificate
	for _, h := range r.held {
		all = append(all, h.cert)
	}
	return all
}

// RootsOptions says what to do with roots. A trust domain that is not named is
// left as it is.
type RootsOptions struct {
	Identities bool
	Grants     bool
	Open       OpenKMS   // for roots in a KMS
	Keys       RootKeys  // of new roots
	OnDisk     bool      // a new root's key may come to lie in the folder, where the old one's was in a KMS
	Now        time.Time // zero means the clock's
}

// RotateRoots makes a successor of a trust domain's newest root, and the document
// that puts it in force beside the ones that are: from then on it signs what this
// folder signs. Bring the document to the cluster, and wait until every proxy
// follows it, before anything that the successor has signed is used.
func RotateRoots(dir string, o RootsOptions) ([]trust.Document, error) {
	if err := o.Keys.check(o.Identities, o.Grants); err != nil {
		return nil, err
	}
	made, err := changeRoots(dir, o, func(off *offline, r roots, now time.Time) (trust.Document, error) {
		d := r.next(now)
		if r.inKMS() && o.Keys.KMS == "" && !o.OnDisk {
			return d, fmt.Errorf("%w: the root of %s has its key in a KMS, and its successor would have it in %s", ErrKeyOnDisk, d.TrustDomain, dir)
		}
		next, err := r.successor(off, o.Keys, now)
		d.Roots = append(d.Roots, next)
		return d, err
	})
	return made, o.Keys.leftInKMS(err)
}

// RetireRoots makes the document that takes all roots but the newest out of
// force. What they have signed ends with it, wherever the document is followed.
func RetireRoots(dir string, o RootsOptions) ([]trust.Document, error) {
	return changeRoots(dir, o, func(_ *offline, r roots, now time.Time) (trust.Document, error) {
		d := r.next(now)
		if len(d.Roots) < 2 {
			return d, fmt.Errorf("%w: %s has one root, and nothing to go over to", ErrInvalid, d.TrustDomain)
		}
		last := len(d.Roots) - 1
		for _, old := range d.Roots[:last] {
			d.Retired = append(d.Retired, trust.ID(old))
		}
		d.Roots = d.Roots[last:]
		slices.Sort(d.Retired)
		return d, nil
	})
}

// DenyIssuers makes the document that takes issuers out of use, by their ids, for
// good: for when no cluster is left that could do so.
func DenyIssuers(dir string, issuers []string, o RootsOptions) ([]trust.Document, error) {
	return changeRoots(dir, o, func(_ *offline, r roots, now time.Time) (trust.Document, error) {
		d := r.next(now)
		d.Denied = append(slices.Clone(d.Denied), issuers...)
		slices.Sort(d.Denied)
		d.Denied = slices.Compact(d.Denied)
		return d, nil
	})
}

// rootsChange writes the document that follows those of some roots.
type rootsChange func(off *offline, r roots, now time.Time) (trust.Document, error)

// changeRoots makes a document for each trust domain named, signed by every root
// that is in force before or after it and whose key is here, and adds them to
// RootsFile: all of them, or none.
func changeRoots(dir string, o RootsOptions, change rootsChange) ([]trust.Document, error) {
	if !o.Identities && !o.Grants {
		return nil, fmt.Errorf("%w: of which trust domain, identities or grants?", ErrInvalid)
	}
	off, err := openOffline(dir, o.Open)
	if err != nil {
		return nil, err
	}
	defer off.close()
	if o.Now.IsZero() {
		o.Now = time.Now()
	}
	for _, r := range []struct {
		wanted bool
		roots  roots
	}{{o.Identities, off.identities}, {o.Grants, off.grantRoots}} {
		if !r.wanted {
			continue
		}
		// Before anything is made: without the root in force nobody would follow.
		if _, err := off.signing(r.roots); err != nil {
			return nil, err
		}
	}
	var made []trust.Document
	for _, r := range []struct {
		wanted bool
		name   string
		td     spiffeid.TrustDomain
	}{{o.Identities, identityRootName, off.identityTD}, {o.Grants, grantsRootName, off.grants}} {
		if !r.wanted {
			continue
		}
		d, err := off.changeRoot(r.name, r.td, o.Now, change)
		if err != nil {
			return nil, err
		}
		made = append(made, d)
	}
	documents, err := loadDocuments(dir)
	if err != nil {
		return nil, err
	}
	text, err := trust.EncodeAll(append(documents, made...))
	if err != nil {
		return nil, err
	}
	return made, off.write(RootsFile, text)
}

// changeRoot makes and signs the document of one trust domain.
func (o *offline) changeRoot(name string, td spiffeid.TrustDomain, now time.Time, change rootsChange) (trust.Document, error) {
	before := o.identities
	if name == grantsRootName {
		before = o.grantRoots
	}
	d, err := change(o, before, now)
	if err != nil {
		return d, err
	}
	documents, err := loadDocuments(o.dir)
	if err != nil {
		return d, err
	}
	after, err := loadRoots(o.dir, name, td, documents) // with the successor
	if err != nil {
		return d, err
	}
	statement, err := d.Statement()
	if err != nil {
		return d, err
	}
	inForce := slices.Concat(before.set.Roots(), d.Roots)
	for _, h := range after.held {
		if h.authority == nil && h.kms == nil || !slices.ContainsFunc(inForce, h.cert.Equal) {
			continue
		}
		a, err := o.authority(h)
		if err != nil {
			return d, err
		}
		value, err := o.signStatement(a, fmt.Sprintf("roots document %d of %s", d.Sequence, td.Name()), statement, now)
		if err != nil {
			return d, err
		}
		d.Signatures = append(d.Signatures, trust.Signature{Root: trust.ID(h.cert), Value: value})
	}
	_, err = before.set.Next(d)
	return d, err
}

// next is the document after the one in force, saying the same.
func (r roots) next(now time.Time) trust.Document {
	old, _ := r.set.Document()
	return trust.Document{
		TrustDomain: r.set.TrustDomain(), Sequence: old.Sequence + 1, Issued: now.UTC().Truncate(time.Second),
		Roots: r.set.Roots(), Retired: slices.Clone(old.Retired), Denied: slices.Clone(old.Denied),
	}
}

// successor makes the next root's key and certificate. One that was made and, as
// the machine stopped, came into no document, is taken up again.
func (r roots) successor(off *offline, keys RootKeys, now time.Time) (*x509.Certificate, error) {
	last := r.held[len(r.held)-1].cert
	if !slices.ContainsFunc(r.set.Roots(), last.Equal) && !r.retired(last) {
		return last, nil
	}
	n := len(r.held) + 1
	file := rootFile(r.name, n)
	td, err := parseTrustDomain(r.set.TrustDomain())
	if err != nil {
		return nil, err
	}
	what := "identity root"
	if r.name == grantsRootName {
		what = "grants root"
	}
	// A key without a certificate is left of a machine that stopped in between: it
	// has signed nothing.
	for _, left := range []string{".key", ".kms"} {
		if err := os.Remove(filepath.Join(off.dir, file+left)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("ca: %w", err)
		}
	}
	subject := fmt.Sprintf("%s %s %d", td.Name(), what, n)
	if err := off.makeRoot(file, subject, td, rootOptions{now, isDev(r.held[0].cert), r.name, keys}); err != nil {
		return nil, err
	}
	return readCertificate(filepath.Join(off.dir, file+".crt"))
}

func (r roots) retired(cert *x509.Certificate) bool {
	d, _ := r.set.Document()
	return slices.Contains(d.Retired, trust.ID(cert))
}

// OfflineRoots are the roots in force of an offline folder, for the bundles of
// those that it issues identities to.
func OfflineRoots(dir string) (identity, grants []*x509.Certificate, err error) {
	o, err := openOffline(dir, nil)
	if err != nil {
		return nil, nil, err
	}
	return o.identities.set.Roots(), o.grantRoots.set.Roots(), nil
}
