package control

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/ca"
	"github.com/hallpass/hallpass/grant"
	"github.com/hallpass/hallpass/raftstore"
)

// defaultIdentityTTL is the life of an identity whose issuer named none.
const defaultIdentityTTL = 24 * time.Hour

// GrantCertificate implements api.GrantBackend: prepare the certificate, commit
// its record, sign it, in this order and no other.
func (b backend) GrantCertificate(ctx context.Context, call api.Call, id string, in api.CertificateInput) (out api.Certificate, err error) {
	key, err := ca.ParseCSR([]byte(in.CSR))
	if err != nil {
		return out, b.counted(ctx, csrProblem(err))
	}
	g, err := b.mintable(ctx, call, id)
	if err != nil {
		return out, b.counted(ctx, err)
	}
	ctx, span := b.continued(ctx, "grant.mint", g.Trace, grantAttr(g.ID), attribute.String("hallpass.service", g.Service))
	defer func() { ended(span, err) }()
	gid, err := grant.ParseID(g.SPIFFEID, b.grantDomain)
	if err != nil {
		return out, fmt.Errorf("grant %s: %w", g.ID, err)
	}
	m := minting{
		role: approval.RoleGrant, spiffeID: g.SPIFFEID,
		prepare: func(now time.Time) (*ca.Ticket, error) {
			return b.custody.issuer(approval.RoleGrant).PrepareGrant(ca.GrantSpec{
				ID: gid, PublicKey: key, Now: now, TTL: g.TTL(), GrantExpiry: g.Expiry.Time(),
				Skew: b.skew, StrictSVID: b.strictSVID,
			})
		},
		body: func(r ca.Record) approval.Body {
			return approval.IssueGrant{
				Grant: g.ID, Serial: r.Serial, TBSHash: r.TBSHash, Issuer: r.Issuer,
				NotBefore: r.NotBefore.UnixMilli(), NotAfter: r.NotAfter.UnixMilli(), Key: r.Key,
				CSRBy: call.Caller.ID.String(),
			}
		},
	}
	out, err = b.mint(ctx, call, m)
	return out, b.counted(ctx, err)
}

// mintable reads a grant that certificates may be minted for, as a courtesy:
// Apply checks again.
func (b backend) mintable(ctx context.Context, call api.Call, id string) (g approval.Grant, err error) {
	err = b.look(ctx, call, func(s approval.State) error {
		// Its subject sees a grant, whoever else does.
		if g, err = s.Grant(id); err != nil || g.Subject != call.Caller.ID.String() {
			if g, err = visibleGrant(s, call.Caller.ID, id); err != nil {
				return err
			}
		}
		now := approval.MillisOf(b.now())
		switch state := g.StateAt(now); {
		case state == approval.GrantExpired:
			return api.NewProblem(api.CodeExpired, fmt.Sprintf("grant %s ended at %s", g.ID, g.Expiry), "ask again")
		case state != approval.GrantActive:
			return api.NewProblem(api.CodeConflict, fmt.Sprintf("grant %s is %s", g.ID, state), "ask again")
		case g.Subject != call.Caller.ID.String():
			return api.NewProblem(api.CodeDenied, fmt.Sprintf("only its subject, %s, gets certificates of grant %s", g.Subject, g.ID), "call with the subject's identity")
		}
		return nil
	})
	return g, err
}

// IssueIdentity implements api.GrantBackend.
func (b backend) IssueIdentity(ctx context.Context, call api.Call, in api.IdentityInput) (out api.Certificate, err error) {
	spec := ca.IdentitySpec{DNSNames: in.DNSNames, TTL: time.Duration(in.TTL), Skew: b.skew}
	if spec.PublicKey, err = ca.ParseCSR([]byte(in.CSR)); err != nil {
		return out, b.counted(ctx, csrProblem(err))
	}
	if spec.ID, err = parseSPIFFEID("spiffe_id", in.SPIFFEID); err != nil {
		return out, b.counted(ctx, err)
	}
	for _, text := range in.IPAddresses {
		ip := net.ParseIP(text)
		if ip == nil {
			return out, b.counted(ctx, api.NewProblem(api.CodeInvalid, fmt.Sprintf("ip_addresses: %q is no IP address", clip(text, 64)), ""))
		}
		spec.IPs = append(spec.IPs, ip)
	}
	if spec.TTL == 0 {
		spec.TTL = defaultIdentityTTL
	}
	if err := b.look(ctx, call, func(s approval.State) error {
		if !s.IsAdmin(call.Caller.ID) {
			return api.NewProblem(api.CodeDenied, "only an admin has identities issued", "ask one of the group "+approval.AdminGroup)
		}
		return nil
	}); err != nil {
		return out, b.counted(ctx, err)
	}
	ctx, span := b.spans.Start(ctx, "identity.mint")
	defer func() { ended(span, err) }()
	m := minting{
		role: approval.RoleIdentity, spiffeID: in.SPIFFEID,
		prepare: func(now time.Time) (*ca.Ticket, error) {
			spec.Now = now
			return b.custody.issuer(approval.RoleIdentity).PrepareIdentity(spec)
		},
		body: func(r ca.Record) approval.Body {
			return approval.IssueIdentity{
				Serial: r.Serial, TBSHash: r.TBSHash, Issuer: r.Issuer, SPIFFEID: in.SPIFFEID,
				NotBefore: r.NotBefore.UnixMilli(), NotAfter: r.NotAfter.UnixMilli(), Key: r.Key,
			}
		},
	}
	out, err = b.mint(ctx, call, m)
	return out, b.counted(ctx, err)
}

// minting is one certificate on its way.
type minting struct {
	role     approval.Role
	spiffeID string
	prepare  func(now time.Time) (*ca.Ticket, error)
	body     func(ca.Record) approval.Body
}

// mint prepares, commits and signs one certificate. A call that was answered
// before under its key gets the same certificate if this node still has it;
// otherwise that one never left, or left to a caller who lost it, and a new one
// is committed in its place.
func (n *node) mint(ctx context.Context, call api.Call, m minting) (api.Certificate, error) {
	out, replayed, err := n.mintOnce(ctx, call, m)
	if err != nil || replayed == "" {
		return out, err
	}
	if chain, ok := n.minted.get(replayed); ok {
		return certificateOf(chain, n.now()), nil
	}
	call.Key = ""
	out, _, err = n.mintOnce(ctx, call, m)
	return out, err
}

// mintOnce mints a certificate, or names the serial that an earlier call under
// the same key committed.
func (n *node) mintOnce(ctx context.Context, call api.Call, m minting) (out api.Certificate, replayed string, err error) {
	now := n.now()
	if err := n.clock.check(now); err != nil {
		return out, "", err
	}
	ticket, err := m.prepare(now)
	if err != nil {
		return out, "", prepareProblem(err)
	}
	record := ticket.Record()
	committed, err := n.commitRecord(ctx, call, record, m)
	if err != nil {
		return out, "", err
	}
	if committed.Serial != record.Serial {
		return out, committed.Serial, nil
	}
	if err := n.failpoint("committed, not signed"); err != nil {
		return out, "", err
	}
	_, span := n.spans.Start(ctx, "ca.sign")
	chain, err := ticket.Sign(committed)
	ended(span, err)
	if err != nil {
		return out, "", fmt.Errorf("sign: %w", err)
	}
	n.minted.put(committed.Serial, chain, n.now())
	n.metrics.minted(ctx, string(m.role))
	return certificateOf(chain, n.now()), "", nil
}

// commitRecord commits a certificate's record and returns it as committed. What
// may or may not have been committed is looked up after a barrier, and is an
// error unless the record is there.
func (n *node) commitRecord(ctx context.Context, call api.Call, record ca.Record, m minting) (ca.Record, error) {
	res, err := n.propose(ctx, call, m.body(record))
	if err == nil {
		issue, ok := res.Object.(approval.Issue)
		if !ok {
			return ca.Record{}, fmt.Errorf("result is a %T, not a certificate's record", res.Object)
		}
		return recordOf(issue), nil
	}
	if !errors.Is(err, api.ErrAmbiguous) {
		return ca.Record{}, err
	}
	// Signing now would let a certificate leave that no quorum may ever have
	// heard of; giving up would waste one that is committed.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), n.limits.Propose)
	defer cancel()
	if lerr := n.store.Linearize(ctx); lerr != nil {
		return ca.Record{}, err
	}
	var issue approval.Issue
	verr := n.store.View(func(r raftstore.Reader, _ uint64) error {
		var err error
		issue, err = approval.Read(r).Issue(record.Serial)
		return err
	})
	if verr != nil || !recordOf(issue).Equal(record) {
		return ca.Record{}, err
	}
	return recordOf(issue), nil
}

func recordOf(i approval.Issue) ca.Record {
	return ca.Record{
		Serial: i.Serial, TBSHash: i.TBSHash, Issuer: i.Issuer,
		NotBefore: i.NotBefore.Time(), NotAfter: i.NotAfter.Time(), Key: i.Key,
	}
}

// certificateOf shows a chain. It is worth renewing once two thirds of what is
// left of its life are over.
func certificateOf(chain []*x509.Certificate, now time.Time) api.Certificate {
	leaf := chain[0]
	out := api.Certificate{
		Certificate: string(ca.EncodeCertificates(chain...)), Serial: ca.SerialText(leaf.SerialNumber),
		NotBefore: leaf.NotBefore.UTC(), NotAfter: leaf.NotAfter.UTC(),
		RenewAfter: now.Add(leaf.NotAfter.Sub(now) * 2 / 3).UTC().Truncate(time.Millisecond),
	}
	if len(leaf.URIs) == 1 {
		out.SPIFFEID = leaf.URIs[0].String()
	}
	return out
}

func csrProblem(err error) error {
	return api.NewProblem(api.CodeInvalid, "csr: "+err.Error(), "send a PEM certificate request with an ECDSA P-256 key, signed by it")
}

func prepareProblem(err error) error {
	switch {
	case errors.Is(err, ca.ErrExpired):
		return api.NewProblem(api.CodeExpired, err.Error(), "ask again")
	case errors.Is(err, ca.ErrInvalid), errors.Is(err, ca.ErrKey):
		return api.NewProblem(api.CodeInvalid, err.Error(), "")
	}
	return fmt.Errorf("prepare: %w", err)
}

// mintCache remembers what this node signed, so that a repeated call gets the
// very certificate that the first one did. It holds their bytes: thousands of
// certificates taken apart are work for every collection of garbage.
type mintCache struct {
	mu    sync.Mutex
	made  map[string]mintedCertificate // guarded by mu; by serial
	order []string                     // guarded by mu; oldest first
}

type mintedCertificate struct {
	leaf     []byte // DER
	issuer   *x509.Certificate
	notAfter time.Time
}

// maxMinted is how many certificates a node remembers.
const maxMinted = 4096

func (c *mintCache) put(serial string, chain []*x509.Certificate, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.made == nil {
		c.made = map[string]mintedCertificate{}
	}
	for len(c.order) > 0 {
		oldest := c.order[0]
		if len(c.order) < maxMinted && now.Before(c.made[oldest].notAfter) {
			break
		}
		delete(c.made, oldest)
		c.order = c.order[1:]
	}
	c.made[serial] = mintedCertificate{leaf: chain[0].Raw, issuer: chain[1], notAfter: chain[0].NotAfter}
	c.order = append(c.order, serial)
}

func (c *mintCache) get(serial string) ([]*x509.Certificate, bool) {
	c.mu.Lock()
	made, ok := c.made[serial]
	c.mu.Unlock()
	if !ok {
		return nil, false
	}
	leaf, err := x509.ParseCertificate(made.leaf)
	return []*x509.Certificate{leaf, made.issuer}, err == nil
}
