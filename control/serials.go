package control

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/ca"
	"github.com/hallpass/hallpass/emergency"
	"github.com/hallpass/hallpass/grant"
	"github.com/hallpass/hallpass/trust"
)

const (
	// uncommittedDir holds, of each certificate that was never committed, the
	// certificate itself and its issuer's: nobody can have made that up.
	uncommittedDir = "uncommitted"
	// maxUncommitted is how many a node keeps, and maxOfIssuer how many of them of
	// one issuer. One says that its key is stolen: a thief who makes many leaves room
	// for the next theft.
	maxUncommitted = 400
	maxOfIssuer    = 10
	// maxWaiting is how many a node looks into at once.
	maxWaiting = 100
	// forgetsEarly is how much earlier than the state forgets a certificate's
	// record this node stops asking for it: its clock may be off.
	forgetsEarly = time.Hour
)

// forged is a certificate of a grant issuer that the state does not have.
type forged struct {
	leaf, issuer *x509.Certificate
	by           string // who was shown it
}

// emergency reports whether custodians made it: its issuer has the root's mark. Then
// it is in their journal, or they were robbed.
func (f forged) emergency() bool { return emergency.CheckMark(f.issuer) == nil }

// file is where it is kept: a thief may give many one serial, or a serial of any
// length.
func (f forged) file() string { return trust.ID(f.leaf) + ".pem" }

// uncommitted raises the alarm at certificates that proxies were shown and no
// quorum ever committed: whoever made them has an issuer's key.
//
// Each node is told, and looks into the state that it applied itself: a thief who
// has one node, be it the one that leads, does not keep the others quiet.
type uncommitted struct {
	dir  string
	news chan struct{} // holds a token when there is something to look into

	mu      sync.Mutex
	waiting map[string]forged // guarded by mu; by file, until this node is known to have all that was committed
	known   map[string]forged // guarded by mu; by file, those that are kept
	last    string            // guarded by mu; the newest of them, in words
	broken  error             // guarded by mu; the folder cannot be relied on
}

func openUncommitted(dataDir string) *uncommitted {
	u := &uncommitted{
		dir: filepath.Join(dataDir, uncommittedDir), news: make(chan struct{}, 1),
		waiting: map[string]forged{}, known: map[string]forged{},
	}
	files, err := os.ReadDir(u.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		u.broken = err
	}
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), ".pem") {
			continue // half of one, of a node that was killed
		}
		data, err := os.ReadFile(filepath.Join(u.dir, f.Name()))
		if err != nil {
			u.broken = err
			continue
		}
		certs, err := ca.DecodeCertificates(data)
		if err != nil || len(certs) != 2 {
			u.broken = fmt.Errorf("%s: not a certificate and its issuer's", f.Name())
			continue
		}
		u.known[f.Name()], u.last = forged{leaf: certs[0], issuer: certs[1]}, f.Name()
	}
	return u
}

// ReportCertificates implements api.GrantBackend. Only a service may, as only a
// proxy is shown certificates; what it says counts for nothing beyond the
// signatures on what it sends.
func (b backend) ReportCertificates(_ context.Context, call api.Call, in api.SeenInput) (out api.Seen, err error) {
	if id := call.Caller.ID; !id.MemberOf(b.trustDomain) || !strings.HasPrefix(id.Path(), "/service/") {
		return out, api.NewProblem(api.CodeDenied, "only a service reports what its proxy was shown", "")
	}
	issuers, err := parseDER(in.Issuers)
	if err != nil {
		return out, err
	}
	leaves, err := parseDER(in.Certificates)
	if err != nil {
		return out, err
	}
	if issuers, err = b.ofGrants(issuers); err != nil {
		return out, err
	}
	for _, leaf := range leaves {
		f := forged{leaf: leaf, issuer: signerOf(leaf, issuers), by: call.Caller.ID.String()}
		if f.issuer == nil || !b.namesGrant(leaf) {
			out.Refused++
			continue
		}
		committed, err := b.committed(f)
		switch {
		case err != nil:
			return out, err
		case committed || b.forgotten(f.leaf):
			out.Committed++
		case b.uncommitted.suspect(f):
			out.Pending++
		default:
			out.Dropped++
		}
	}
	return out, nil
}

func parseDER(ders [][]byte) ([]*x509.Certificate, error) {
	all := make([]*x509.Certificate, 0, len(ders))
	for _, der := range ders {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, api.NewProblem(api.CodeInvalid, "not a certificate", "send DER, in base64")
		}
		all = append(all, c)
	}
	return all, nil
}

// ofGrants gives those of the certificates that issue grants: the cluster's, or what a
// root in force has signed. A report of anything else is noise that anybody can
// make, and is put aside before any other signature is checked: sixty-four
// certificates by sixty-four issuers of one name would be 4096.
func (n *node) ofGrants(certs []*x509.Certificate) (issuers []*x509.Certificate, err error) {
	err = n.local(func(s approval.State) error {
		known := map[string]bool{}
		for _, c := range certs {
			id := trust.ID(c)
			if known[id] {
				continue
			}
			i, err := s.Issuer(id)
			if err != nil && !errors.Is(err, approval.ErrNotFound) {
				return err
			}
			if err == nil && i.Role == approval.RoleGrant || signerOf(c, n.custody.get().grantRoots) != nil {
				known[id], issuers = true, append(issuers, c)
			}
		}
		return nil
	})
	return issuers, err
}

// signerOf is the one that signed a certificate; nil: none of them.
func signerOf(c *x509.Certificate, issuers []*x509.Certificate) *x509.Certificate {
	for _, issuer := range issuers {
		if bytes.Equal(c.RawIssuer, issuer.RawSubject) && c.CheckSignatureFrom(issuer) == nil {
			return issuer
		}
	}
	return nil
}

// namesGrant reports whether a certificate is a grant's by its name.
func (n *node) namesGrant(leaf *x509.Certificate) bool {
	if len(leaf.URIs) != 1 {
		return false
	}
	_, err := grant.ParseID(leaf.URIs[0].String(), n.grantDomain)
	return err == nil
}

// committed reports whether this node's state has the certificate, and no other
// under its serial.
func (n *node) committed(f forged) (ok bool, err error) {
	tbs := sha256.Sum256(f.leaf.RawTBSCertificate)
	err = n.local(func(s approval.State) error {
		i, err := s.Issue(ca.SerialText(f.leaf.SerialNumber))
		if errors.Is(err, approval.ErrNotFound) {
			return nil
		}
		// A thief who takes a serial that was committed has made other bytes.
		ok = err == nil && i.Issuer == trust.ID(f.issuer) && i.TBSHash == hex.EncodeToString(tbs[:])
		return err
	})
	return ok, err
}

// forgotten reports whether the state may have dropped a certificate's record.
func (n *node) forgotten(leaf *x509.Certificate) bool {
	return n.now().After(leaf.NotAfter.Add(approval.IssueLife - forgetsEarly))
}

// suspect has a certificate looked into. It says no when there are too many.
func (u *uncommitted) suspect(f forged) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if _, ok := u.known[f.file()]; ok {
		return true
	}
	if len(u.waiting) >= maxWaiting || u.full(f) {
		return false
	}
	u.waiting[f.file()] = f
	select {
	case u.news <- struct{}{}:
	default: // one is there
	}
	return true
}

// full reports whether no more such certificates are kept. Call with mu held.
func (u *uncommitted) full(f forged) bool {
	of, issuer := 0, trust.ID(f.issuer)
	for _, kept := range u.known {
		if trust.ID(kept.issuer) == issuer {
			of++
		}
	}
	return of >= maxOfIssuer || len(u.known) >= maxUncommitted
}

// watchUncommitted looks into what was reported, until ctx ends.
func (n *node) watchUncommitted(ctx context.Context) {
	for {
		select {
		case <-n.uncommitted.news:
		case <-ctx.Done():
			return
		}
		for n.lookInto(ctx) != nil {
			if pause(ctx, n.limits.Tick) != nil {
				return
			}
		}
	}
}

// lookInto looks once more for what this node did not have when it was reported,
// now that a quorum has said how much there is and this node has all of it. A
// certificate is committed before it is signed, so one that is not there by now
// never was. An error means that this cannot be said yet.
func (n *node) lookInto(ctx context.Context) error {
	u := n.uncommitted
	u.mu.Lock()
	batch := make([]forged, 0, len(u.waiting))
	for _, f := range u.waiting {
		batch = append(batch, f)
	}
	u.mu.Unlock()
	if len(batch) == 0 {
		return nil
	}
	round, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	v, err := n.askVerified(round)
	if err != nil {
		return err
	}
	if n.store.Index() < v.Index {
		if _, err := n.store.Wait(round, v.Index-1); err != nil {
			return err
		}
	}
	for _, f := range batch {
		committed, err := n.committed(f)
		if err == nil && !committed {
			err = n.alarm(ctx, f)
		}
		if err != nil {
			return err
		}
		u.mu.Lock()
		delete(u.waiting, f.file())
		u.mu.Unlock()
	}
	return nil
}

// alarm keeps the evidence and says what it is evidence of.
func (n *node) alarm(ctx context.Context, f forged) error {
	u := n.uncommitted
	u.mu.Lock()
	full := u.full(f)
	u.mu.Unlock()
	if full {
		return nil // it came with those that are kept
	}
	var evidence bytes.Buffer
	for _, c := range []*x509.Certificate{f.leaf, f.issuer} {
		if err := pem.Encode(&evidence, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}); err != nil {
			return err
		}
	}
	err := os.MkdirAll(u.dir, 0o700)
	if err == nil {
		err = writeSynced(filepath.Join(u.dir, f.file()), evidence.Bytes())
	}
	id, serial := trust.ID(f.issuer), clip(ca.SerialText(f.leaf.SerialNumber), 64)
	words := fmt.Sprintf("%s, for %s, shown to %s", serial, f.leaf.URIs[0], f.by)
	u.mu.Lock()
	u.known[f.file()], u.last, u.broken = f, words, err
	u.mu.Unlock()
	level, what := slog.LevelError, "a certificate was used that was never committed: its issuer's key is stolen"
	if f.emergency() {
		level, what = slog.LevelWarn, "an emergency certificate was used that is not imported: bring the custodians' journal"
		n.metrics.emergencySeen(ctx)
	} else {
		n.metrics.uncommittedSeen(ctx)
	}
	n.log.LogAttrs(ctx, level, what,
		slog.String("serial", serial), slog.String("issuer", id), slog.String("issuer_name", clip(f.issuer.Subject.CommonName, 256)),
		slog.String("spiffe_id", clip(f.leaf.URIs[0].String(), 2048)), slog.String("shown_to", f.by), slog.Any("error", err))
	return nil
}

// checkUncommitted warns of issuers whose key somebody else has, until they are
// denied.
func (n *node) checkUncommitted() Finding {
	u := n.uncommitted
	n.clearImported()
	u.mu.Lock()
	count, last, broken := map[string]int{}, u.last, u.broken
	emergencies := map[string]int{}
	for _, f := range u.known {
		if id := trust.ID(f.issuer); f.emergency() {
			emergencies[id]++
		} else {
			count[id]++
		}
	}
	u.mu.Unlock()
	denied := n.custody.get().denied
	open := 0
	var issuers []string
	for issuer, n := range count {
		if !denied[issuer] {
			open += n
			issuers = append(issuers, issuer)
		}
	}
	switch {
	case open > 0:
		return Finding{"serials", statusWarn, clip(fmt.Sprintf(
			"%d certificates were used that were never committed; deny their issuers: %s; the newest: %s", open, strings.Join(issuers, " "), last), 2048)}
	case len(emergencies) > 0:
		return Finding{"serials", statusWarn, clip(emergencyWords(emergencies, last), 2048)}
	case broken != nil:
		return Finding{"serials", statusWarn, clip(broken.Error(), 512)}
	}
	return Finding{"serials", statusOK, ""}
}

// emergencyWords says what to do about emergency certificates that are not imported.
func emergencyWords(issuers map[string]int, last string) string {
	n := 0
	for _, count := range issuers {
		n += count
	}
	return fmt.Sprintf("%d emergency certificates were used that are not imported; bring the journal of %s with hallpass emergency import, "+
		"and deny the issuer if its custodians know nothing of them; the newest: %s", n, strings.Join(slices.Sorted(maps.Keys(issuers)), " "), last)
}

// clearImported forgets the emergency certificates that have been imported since they
// were used. Of those that were forged nothing is ever cleared.
func (n *node) clearImported() {
	u := n.uncommitted
	u.mu.Lock()
	var open []forged
	for _, f := range u.known {
		if f.emergency() {
			open = append(open, f)
		}
	}
	u.mu.Unlock()
	for _, f := range open {
		if ok, err := n.committed(f); err != nil || !ok {
			continue
		}
		u.mu.Lock()
		delete(u.known, f.file())
		if err := os.Remove(filepath.Join(u.dir, f.file())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			u.broken = err
		}
		u.mu.Unlock()
	}
}
