package control

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/ca"
	"github.com/hallpass/hallpass/trust"
)

// trusted is whom a node believes and what it signs with. It is never changed,
// only replaced.
type trusted struct {
	roots      []*x509.Certificate // of identities
	grantRoots []*x509.Certificate
	revision   uint64          // of the state that roots and denied are of
	documents  uint64          // roots documents that there have been, of both domains
	denied     map[string]bool // ids of issuers that are out of use
	signing    map[approval.Role]*ca.Issuer
	usable     map[approval.Role]bool // false: denied, over, or its key is gone
	api        tls.Certificate
}

// custody keeps a node's trusted up to date: with the roots, issuers and denials
// of the replicated state, and with what is put into the node's key folder.
type custody struct {
	cur atomic.Pointer[trusted]

	mu        sync.Mutex
	revision  uint64                 // guarded by mu; of the state that the rest was read from
	documents uint64                 // guarded by mu; roots documents, of both domains
	mine      []approval.Issuer      // guarded by mu; this node's, of the state
	roots     [2][]*x509.Certificate // guarded by mu; identity, grants
	denied    map[string]bool        // guarded by mu
	apiDER    []byte                 // guarded by mu; of the state
	issuers   map[string]*ca.Issuer  // guarded by mu; by id, those whose key is here
	file      ca.NodeCertificates    // guarded by mu; in the key folder
	fileErr   string                 // guarded by mu; why it is not in use
}

// refusal is what the cluster would not record, and why: it is not asked again
// before the folder or the state has changed.
type refusal struct {
	certificates [3]string // ids
	revision     uint64
	why          error
}

func newCustody(n *ca.Node, m ca.Manifest) (*custody, error) {
	identity, grants, err := m.Roots()
	if err != nil {
		return nil, err
	}
	c := &custody{
		roots:   [2][]*x509.Certificate{identity.Roots(), grants.Roots()},
		issuers: map[string]*ca.Issuer{n.Identity.ID(): n.Identity, n.Grants.ID(): n.Grants},
	}
	c.cur.Store(&trusted{
		roots: c.roots[0], grantRoots: c.roots[1], api: n.API,
		signing: map[approval.Role]*ca.Issuer{approval.RoleIdentity: n.Identity, approval.RoleGrant: n.Grants},
		usable:  map[approval.Role]bool{approval.RoleIdentity: true, approval.RoleGrant: true},
	})
	return c, nil
}

// get is whom the node believes and what it signs with now.
func (c *custody) get() *trusted { return c.cur.Load() }

// issuer is what certificates of a role are signed with now.
func (c *custody) issuer(role approval.Role) *ca.Issuer { return c.get().signing[role] }

// learn reads roots, issuers and denials when the state's have changed.
func (n *node) learn(ctx context.Context, s approval.State) error {
	c := n.custody
	revision, err := s.TrustRevision()
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil || revision == c.revision {
		return err
	}
	cluster, err := s.Cluster()
	if err != nil {
		return err
	}
	self, err := s.Node(n.node.ID)
	if err != nil && !errors.Is(err, approval.ErrNotFound) {
		return err
	}
	c.documents = 0
	for i, role := range []approval.Role{approval.RoleIdentity, approval.RoleGrant} {
		r, err := s.Roots(role)
		if err != nil {
			return err
		}
		roots, err := parseCertificates(r.InForce)
		if err != nil {
			return err
		}
		c.roots[i] = roots
		c.documents += r.Sequence
	}
	c.mine, c.denied, c.apiDER, c.revision = nil, map[string]bool{}, self.APICertificate, revision
	for _, i := range cluster.Issuers {
		if i.Denied != 0 {
			c.denied[i.ID] = true
		}
		if i.Node == n.node.ID {
			c.mine = append(c.mine, i)
		}
	}
	n.choose(ctx)
	return nil
}

func parseCertificates(ders [][]byte) ([]*x509.Certificate, error) {
	var all []*x509.Certificate
	for _, der := range ders {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		all = append(all, cert)
	}
	return all, nil
}

// choose picks what to sign with: of this node's issuers that are in use, have
// begun, and whose key is here, one of the newest root, and of those the one that
// ends last. The caller holds mu.
func (n *node) choose(ctx context.Context) {
	c, old := n.custody, n.custody.get()
	next := &trusted{
		roots: c.roots[0], grantRoots: c.roots[1], denied: c.denied, revision: c.revision, documents: c.documents,
		signing: map[approval.Role]*ca.Issuer{}, usable: map[approval.Role]bool{},
	}
	for _, role := range []approval.Role{approval.RoleIdentity, approval.RoleGrant} {
		best := n.bestIssuer(role)
		next.signing[role], next.usable[role] = best, best != nil
		if best == nil {
			next.signing[role] = old.signing[role] // its refusals say what is wrong
		}
		if prev := old.signing[role]; best != nil && prev.ID() != best.ID() {
			n.log.LogAttrs(ctx, slog.LevelInfo, "signing with another issuer",
				slog.String("role", string(role)), slog.String("issuer", best.ID()), slog.Time("not_after", best.Certificate().NotAfter))
		}
	}
	next.api = n.bestAPI()
	if !next.api.Leaf.Equal(old.api.Leaf) {
		n.log.LogAttrs(ctx, slog.LevelInfo, "API certificate replaced", slog.Time("not_after", next.api.Leaf.NotAfter))
	}
	if next.revision != old.revision || !maps.Equal(next.signing, old.signing) || !maps.Equal(next.usable, old.usable) || !next.api.Leaf.Equal(old.api.Leaf) {
		c.cur.Store(next)
	}
}

func (n *node) bestIssuer(role approval.Role) *ca.Issuer {
	c, now := n.custody, n.now()
	if c.revision == 0 {
		return c.get().signing[role] // nothing is signed before the bootstrap anyway
	}
	var best *ca.Issuer
	bestRank := -1
	for _, i := range c.mine {
		if i.Role != role || i.Denied != 0 || i.Retired != 0 || !now.Before(i.NotAfter.Time()) {
			continue
		}
		issuer := n.issuerWithKey(i)
		if issuer == nil || now.Before(issuer.Certificate().NotBefore) {
			continue
		}
		// Going over to roots in a KMS goes over to issuers that live for days: what
		// the old root signed would end later, and go out of use with its root.
		rank := c.rank(role, i.Root)
		if best == nil || rank > bestRank || rank == bestRank && issuer.Certificate().NotAfter.After(best.Certificate().NotAfter) {
			best, bestRank = issuer, rank
		}
	}
	return best
}

// rank is the place of a root, by its id, among those in force: the newest is the
// last. The caller holds mu.
func (c *custody) rank(role approval.Role, root string) int {
	roots := c.roots[0]
	if role == approval.RoleGrant {
		roots = c.roots[1]
	}
	return slices.IndexFunc(roots, func(r *x509.Certificate) bool { return trust.ID(r) == root })
}

// issuerWithKey pairs an issuer of this node with its key, nil when it is not
// here. A key that is put there later is found the next time.
func (n *node) issuerWithKey(i approval.Issuer) *ca.Issuer {
	c := n.custody
	if known := c.issuers[i.ID]; known != nil {
		return known
	}
	cert, err := x509.ParseCertificate(i.DER)
	if err != nil {
		return nil
	}
	role := ca.RoleIdentity
	if i.Role == approval.RoleGrant {
		role = ca.RoleGrants
	}
	issuer, err := n.node.IssuerOf(role, cert)
	if err != nil {
		return nil
	}
	c.issuers[i.ID] = issuer
	return issuer
}

// bestAPI is the API certificate that ends last, of the manifest's, the state's
// and the folder's: the last needs no cluster, so that a node whose certificate
// has ended already can be helped.
func (n *node) bestAPI() tls.Certificate {
	c, best := n.custody, n.node.API
	var candidates []*x509.Certificate
	if cert, err := x509.ParseCertificate(c.apiDER); err == nil {
		candidates = append(candidates, cert)
	}
	if c.file.APICertificate != nil {
		candidates = append(candidates, c.file.APICertificate)
	}
	for _, cert := range candidates {
		if !cert.NotAfter.After(best.Leaf.NotAfter) {
			continue
		}
		id, err := ca.VerifyIdentity([]*x509.Certificate{cert}, c.roots[0], n.trustDomain, n.now())
		if err != nil || id != n.node.SPIFFEID {
			continue
		}
		if pair, err := n.node.APIOf(cert); err == nil {
			best = pair
		}
	}
	return best
}

// watchCustody looks at the key folder, and at what has begun or ended, until ctx
// ends.
func (n *node) watchCustody(ctx context.Context) {
	var last refusal
	for {
		said := ""
		if err := n.readFolder(ctx, &last); err != nil {
			said = err.Error()
		}
		n.complain(ctx, said)
		n.yield(ctx)
		if pause(ctx, n.limits.Tick) != nil {
			return
		}
	}
}

// readFolder takes in what was put into the key folder, and has the cluster
// record it: what no quorum knows of, no certificate may stand on.
func (n *node) readFolder(ctx context.Context, last *refusal) error {
	file, err := n.node.Certificates()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		file, err = ca.NodeCertificates{}, nil
	case err == nil && file.Node != n.node.ID:
		file, err = ca.NodeCertificates{}, fmt.Errorf("they are of node %s", file.Node)
	}
	c := n.custody
	c.mu.Lock()
	c.file = file
	n.choose(ctx)
	body, todo := c.missing()
	this := refusal{revision: c.revision}
	c.mu.Unlock()
	if err != nil || !todo {
		return err
	}
	this.certificates = [3]string{trust.ID(file.IdentityIssuer), trust.ID(file.GrantIssuer), trust.ID(file.APICertificate)}
	if last.certificates == this.certificates && last.revision == this.revision {
		return last.why
	}
	err = n.installOwn(ctx, body)
	if refusedForGood(err) {
		this.why = err
		*last = this
	}
	return err
}

// refusedForGood says that asking again would be answered alike.
func refusedForGood(err error) bool {
	var ae *approval.Error
	var p *api.Problem
	return errors.As(err, &ae) || errors.As(err, &p) && p.Status != 0 && p.Status < http.StatusInternalServerError
}

// complain says once in the log, and in /readyz while it lasts, what is wrong with
// the folder's certificates.
func (n *node) complain(ctx context.Context, said string) {
	c := n.custody
	c.mu.Lock()
	defer c.mu.Unlock()
	if said != "" && said != c.fileErr && ctx.Err() == nil {
		n.log.LogAttrs(ctx, slog.LevelWarn, "the certificates in the key folder are not in use", slog.String("error", clip(said, 512)))
	}
	c.fileErr = said
}

// yield hands leadership over when this node can sign nothing and another can: a
// leader without issuers would leave the cluster without certificates.
func (n *node) yield(ctx context.Context) {
	if n.custody.get().usable[approval.RoleGrant] || !n.store.IsLeader() {
		return
	}
	other := false
	now := approval.MillisOf(n.now())
	err := n.local(func(s approval.State) error {
		c, err := s.Cluster()
		other = slices.ContainsFunc(c.Issuers, func(i approval.Issuer) bool {
			return i.Node != n.node.ID && i.Role == approval.RoleGrant && i.Denied == 0 && i.Retired == 0 && now < i.NotAfter
		})
		return err
	})
	if err == nil && other {
		err = n.store.TransferLeadership()
	}
	if err != nil {
		n.log.LogAttrs(ctx, slog.LevelWarn, "leadership cannot be handed over", slog.String("error", err.Error()))
	}
}

// missing is what of the folder's certificates the state does not have. The
// caller holds mu.
func (c *custody) missing() (body approval.InstallIssuer, any bool) {
	if c.file.Node == "" || c.revision == 0 {
		return body, false
	}
	known := func(cert *x509.Certificate) bool {
		return slices.ContainsFunc(c.mine, func(i approval.Issuer) bool { return i.ID == trust.ID(cert) })
	}
	if !known(c.file.IdentityIssuer) {
		body.IdentityIssuer = c.file.IdentityIssuer.Raw
	}
	if !known(c.file.GrantIssuer) {
		body.GrantIssuer = c.file.GrantIssuer.Raw
	}
	have, err := x509.ParseCertificate(c.apiDER)
	if err != nil || c.file.APICertificate.NotAfter.After(have.NotAfter) {
		body.APICertificate = c.file.APICertificate.Raw
	}
	return body, len(body.IdentityIssuer)+len(body.GrantIssuer)+len(body.APICertificate) > 0
}

// checkFolder warns when certificates that were put there cannot be used.
func (n *node) checkFolder() Finding {
	c := n.custody
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fileErr != "" {
		return Finding{ca.CertificatesFile, statusWarn, clip(c.fileErr, 512)}
	}
	return Finding{ca.CertificatesFile, statusOK, ""}
}

// checkIssuer looks at what a role's certificates are signed with.
func (n *node) checkIssuer(what string, role approval.Role) Finding {
	t := n.custody.get()
	issuer := t.signing[role]
	f := n.checkCertificate(what, issuer.Certificate())
	if t.denied[issuer.ID()] {
		return Finding{what, statusFail, "denied: this node can sign nothing until it has another; see hallpass issuer install"}
	}
	if !t.usable[role] && f.Status != statusFail {
		return Finding{what, statusFail, "not known to the cluster, or its key is not in the key folder"}
	}
	return f
}
