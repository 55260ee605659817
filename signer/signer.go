package signer

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/ca"
)

// Identity is the path of the signer's SPIFFE ID.
const Identity = "/service/signer"

const (
	// identityLife is how long the signer's own identity lives; a new one is made at
	// half of it.
	identityLife = 24 * time.Hour
	// maxSkew is how far the signer's clock may be from the nodes'.
	maxSkew = time.Minute
	// answerTime bounds one call to one node.
	answerTime = 5 * time.Second
	// probes is how many looks at the cluster there are to one at the KMS.
	probes = 10

	defaultEvery = time.Minute
	minEvery     = time.Second
	maxEvery     = time.Hour
)

// ErrConfig is returned when a Config asks for what cannot be.
var ErrConfig = errors.New("signer: bad configuration")

// Config says what to renew.
type Config struct {
	Dir    string        // the folder of ca init
	Open   ca.OpenKMS    // opens the roots' KMS
	Life   time.Duration // of issuers; zero means ca.KMSIssuerLife
	Every  time.Duration // between two looks at the cluster; zero means a minute
	Logger *slog.Logger  // nil discards
	Meter  metric.MeterProvider
	Now    func() time.Time
}

// Signer renews until Run ends.
type Signer struct {
	dir   string
	open  ca.OpenKMS
	life  time.Duration
	every time.Duration
	log   *slog.Logger
	now   func() time.Time
	meter *instruments

	// Of Run's goroutine alone.
	refused error // the PIN was, and is not tried again
	me      tls.Certificate
	probed  time.Time // when the KMS last gave its keys
	turn    int       // at which node installing begins

	mu     sync.Mutex
	status status // guarded by mu
}

// New checks a Config. It opens nothing.
func New(cfg Config) (*Signer, error) {
	s := &Signer{dir: cfg.Dir, life: cfg.Life, every: cfg.Every, log: cfg.Logger, now: cfg.Now}
	if s.life == 0 {
		s.life = ca.KMSIssuerLife
	}
	if s.every == 0 {
		s.every = defaultEvery
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.now == nil {
		s.now = time.Now
	}
	switch {
	case cfg.Dir == "":
		return nil, fmt.Errorf("%w: no folder of ca init", ErrConfig)
	case cfg.Open == nil:
		return nil, fmt.Errorf("%w: nothing to open a KMS with", ErrConfig)
	case s.life < ca.MinRenewedLife || s.life > ca.IssuerLife:
		return nil, fmt.Errorf("%w: life: %s: want %s to %s", ErrConfig, s.life, ca.MinRenewedLife, ca.IssuerLife)
	case s.every < minEvery || s.every > maxEvery || s.every > s.life/20:
		return nil, fmt.Errorf("%w: every: %s: want %s to %s, and at most a twentieth of the life, %s", ErrConfig, s.every, minEvery, maxEvery, s.life/20)
	}
	s.open = func(uri string) (ca.KMS, error) {
		if s.refused != nil {
			// Each try counts at the token, and the last one locks it.
			return nil, s.refused
		}
		k, err := cfg.Open(uri)
		if errors.Is(err, ca.ErrPINRefused) {
			s.refused = fmt.Errorf("%w; it is not tried again: correct it, and start the signer again", err)
			return nil, s.refused
		}
		return k, err
	}
	if cfg.Meter == nil {
		cfg.Meter = noop.NewMeterProvider()
	}
	var err error
	s.meter, err = s.instruments(cfg.Meter)
	return s, err
}

// Run renews until ctx ends.
func (s *Signer) Run(ctx context.Context) error {
	defer s.meter.close()
	for {
		s.round(ctx)
		t := time.NewTimer(s.every)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		}
	}
}

// round looks at the cluster once, and does what is due.
func (s *Signer) round(ctx context.Context) {
	s.began()
	seen := &look{now: s.now(), nodes: map[string]Finding{}}
	defer func() { s.ended(ctx, seen) }()
	r, err := ca.OpenRenewer(s.dir, s.open)
	if err != nil {
		seen.folder = err
		return
	}
	defer r.Close()
	seen.kms = s.probe(r, seen.now)
	if err := s.identify(r, seen.now); err != nil {
		seen.kms = err
		if s.me.Leaf == nil {
			seen.cluster = errors.New("no identity to ask the nodes with")
			return
		}
	}
	answers := s.ask(ctx, r)
	seen.cluster = answers.enough(seen.now)
	for _, n := range r.Manifest().Nodes {
		seen.nodes[n.ID] = s.tend(ctx, r, n.ID, answers, seen)
	}
}

// probe asks the KMS for its keys now and then, so that one that is gone is missed
// long before it is needed.
func (s *Signer) probe(r *ca.Renewer, now time.Time) error {
	if age := now.Sub(s.probed); s.statusNow().kms == nil && age >= 0 && age < probes*s.every {
		return nil
	}
	err := r.CheckKeys()
	if err == nil {
		s.probed = now
	}
	return err
}

// identify gives the signer an identity to call with.
func (s *Signer) identify(r *ca.Renewer, now time.Time) error {
	if l := s.me.Leaf; l != nil && now.Before(l.NotBefore.Add(l.NotAfter.Sub(l.NotBefore)/2)) && s.trusted(r) {
		return nil
	}
	key, err := ca.GenerateKey()
	if err != nil {
		return err
	}
	chain, err := r.Identity(Identity, key.Public(), identityLife, now)
	if err != nil {
		return err
	}
	me := tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, c := range chain {
		me.Certificate = append(me.Certificate, c.Raw)
	}
	s.me = me
	return nil
}

// trusted says that the root of the signer's identity is still in force.
func (s *Signer) trusted(r *ca.Renewer) bool {
	for _, root := range r.IdentityRoots() {
		if s.me.Leaf.CheckSignatureFrom(root) == nil {
			return true
		}
	}
	return false
}

// client calls one node, and no other in its place.
func (s *Signer) client(r *ca.Renewer, n ca.NodeEntry) (*api.Client, error) {
	roots := x509.NewCertPool()
	for _, c := range r.IdentityRoots() {
		roots.AddCert(c)
	}
	me := s.me
	return api.NewClient(api.ClientConfig{
		Servers: []string{"https://" + n.APIAddress}, Node: n.ID, Certificate: &me, Roots: roots,
		Timeout: answerTime, RetryFor: -1, Logger: s.log,
	})
}

// tend renews one node's certificates when they are due, and gives the cluster those
// that it does not have.
func (s *Signer) tend(ctx context.Context, r *ca.Renewer, node string, a answers, seen *look) Finding {
	f := Finding{Check: "node " + node, Status: statusOK}
	last, err := r.Last(node)
	if err != nil {
		return f.warn(err)
	}
	f = f.ends(last, seen.now)
	if seen.cluster != nil {
		return f // who is denied is not known
	}
	if err := a.forbids(r, node, last); err != nil {
		return f.warn(err)
	}
	if !seen.now.Before(last.RenewAt()) || r.RootGone(last) {
		next, err := s.renew(ctx, r, node, seen)
		if err != nil {
			f = f.warn(err)
		} else {
			last = next
			f = Finding{Check: f.Check, Status: statusOK}.ends(last, seen.now)
		}
	}
	if !a.has(last) && seen.now.Before(last.NotAfter()) {
		if err := s.install(ctx, r, last); err != nil {
			s.meter.failed(ctx, "install")
			return f.warn(fmt.Errorf("the cluster did not take what was signed: %w", err))
		}
		s.meter.installed(ctx)
		s.log.LogAttrs(ctx, slog.LevelInfo, "gave the cluster a node's new certificates",
			slog.String("node", node), slog.Time("not_after", last.NotAfter()))
	}
	return f.asked(a.wants(node, last))
}

// renew signs a node's successors.
func (s *Signer) renew(ctx context.Context, r *ca.Renewer, node string, seen *look) (ca.NodeCertificates, error) {
	next, err := r.Renew(node, s.life, seen.now)
	if err != nil {
		s.meter.failed(ctx, "sign")
		if !errors.Is(err, ca.ErrPaced) && !errors.Is(err, ca.ErrRefused) && !errors.Is(err, ca.ErrUntrusted) && !errors.Is(err, ca.ErrKeyOnDisk) {
			seen.kms = err
		}
		return next, err
	}
	s.meter.signed(ctx)
	s.log.LogAttrs(ctx, slog.LevelInfo, "signed the successors of a node's certificates",
		slog.String("node", node), slog.Time("not_after", next.NotAfter()))
	return next, nil
}

// install gives the cluster a node's certificates, by whichever node answers.
func (s *Signer) install(ctx context.Context, r *ca.Renewer, c ca.NodeCertificates) error {
	in := api.InstallInput{
		Node:           c.Node,
		IdentityIssuer: string(ca.EncodeCertificates(c.IdentityIssuer)),
		GrantIssuer:    string(ca.EncodeCertificates(c.GrantIssuer)),
		APICertificate: string(ca.EncodeCertificates(c.APICertificate)),
	}
	var errs []error
	nodes := r.Manifest().Nodes
	s.turn++ // a node that lies is asked first once, and not always
	for i := range nodes {
		n := nodes[(i+s.turn)%len(nodes)]
		cl, err := s.client(r, n)
		if err != nil {
			return err
		}
		_, err = cl.InstallIssuers(ctx, in)
		cl.Close()
		if err == nil {
			return nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", n.ID, err))
		var p *api.Problem
		if errors.As(err, &p) && p.Status != 0 && p.Status < 500 {
			break // another node would answer the same
		}
	}
	return errors.Join(errs...)
}
