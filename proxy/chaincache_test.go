package proxy

import (
	"crypto/x509"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// remembering is a proxy and a grant's chain that it has verified once.
func remembering(t *testing.T, until time.Duration) (*Proxy, *pki, []*x509.Certificate) {
	t.Helper()
	p := newPKI(t)
	px, err := New(Config{Settings: settings(t, p, t.TempDir())})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = px.Close() })
	issuer := p.authorityUntil("short issuer", p.grantRoot, time.Now().Add(until))
	cert := p.mint(leafSpec{
		uris: []string{grantURI(t, "payments", newGrantID(t), "GET /**")}, issuer: issuer,
		eku: p.grant(time.Hour, "tcp").Leaf.ExtKeyUsage, notAfter: time.Now().Add(time.Hour),
	})
	chain := chainOf(t, cert)
	if _, err := px.admit(chain, px.keeper.cur.Load()); err != nil {
		t.Fatal(err)
	}
	if n := len(px.keeper.cur.Load().chains.found); n != 1 {
		t.Fatalf("%d chains are remembered", n)
	}
	return px, p, chain
}

func wantRefusal(t *testing.T, what string, err error, reason string) {
	t.Helper()
	var r *refusal
	if !errors.As(err, &r) || r.reason != reason {
		t.Errorf("%s: %v, want %s", what, err, reason)
	}
}

// TestRememberedChain: a chain that is remembered is not verified again, and is
// admitted by what is true now, not by what was true then.
func TestRememberedChain(t *testing.T) {
	t.Run("used", func(t *testing.T) {
		px, _, chain := remembering(t, 2*time.Hour)
		m := px.keeper.cur.Load()
		for _, known := range m.chains.found {
			known.id = spiffeid.RequireFromString("spiffe://grants.acme.test/marked")
		}
		if _, err := px.admit(chain, m); err == nil {
			t.Error("it was verified again")
		}
	})
	t.Run("dates", func(t *testing.T) {
		px, _, chain := remembering(t, 30*time.Minute)
		m := px.keeper.cur.Load()
		for what, at := range map[string]struct {
			now    time.Time
			reason string
		}{
			"the leaf has expired":       {chain[0].NotAfter, reasonExpired},
			"the issuer has expired":     {chain[1].NotAfter.Add(time.Second), reasonExpired},
			"the leaf is not yet valid":  {chain[0].NotBefore.Add(-time.Second), reasonNotYetValid},
			"everything has long ended":  {time.Now().Add(1000 * time.Hour), reasonExpired},
			"nothing has begun to count": {time.Now().Add(-1000 * time.Hour), reasonNotYetValid},
		} {
			_, err := examine(chain, m, px.cfg, at.now)
			wantRefusal(t, what, err, at.reason)
		}
		if _, err := examine(chain, m, px.cfg, time.Now()); err != nil {
			t.Errorf("now: %v", err)
		}
	})
	t.Run("revoked", func(t *testing.T) {
		px, _, chain := remembering(t, 2*time.Hour)
		m := px.keeper.cur.Load()
		adm, err := px.admit(chain, m)
		if err != nil {
			t.Fatal(err)
		}
		if err := px.rev.apply(feedDoc{Epoch: 1, Revision: 1, Grants: []feedEntry{{adm.grantID, time.Now().Add(2 * time.Hour)}}}); err != nil {
			t.Fatal(err)
		}
		_, err = px.admit(chain, m)
		wantRefusal(t, "revoked", err, reasonRevoked)
	})
	t.Run("another service", func(t *testing.T) {
		px, _, chain := remembering(t, 2*time.Hour)
		other := *px.cfg
		other.service = "orders"
		_, err := examine(chain, px.keeper.cur.Load(), &other, time.Now())
		wantRefusal(t, "another service's proxy", err, reasonWrongService)
	})
	t.Run("the root is taken out", func(t *testing.T) {
		px, _, chain := remembering(t, 2*time.Hour)
		writeFile(t, filepath.Join(filepath.Dir(px.cfg.files.grants), "grants-bundle.pem"), pemCerts(newPKI(t).grantRoot.cert))
		if err := px.Reload(); err != nil {
			t.Fatal(err)
		}
		_, err := px.admit(chain, px.keeper.cur.Load())
		wantRefusal(t, "its root is gone", err, reasonUntrusted)
	})
	t.Run("another chain of the same leaf", func(t *testing.T) {
		px, p, chain := remembering(t, 2*time.Hour)
		m := px.keeper.cur.Load()
		_, err := px.admit([]*x509.Certificate{chain[0], p.grantIssuer.cert}, m)
		wantRefusal(t, "the leaf behind another issuer", err, reasonUntrusted)
		if _, err = px.admit(chain[:1], m); err == nil {
			t.Error("the leaf alone was admitted")
		}
		if keyOf(chain, p.id(t)) == keyOf([]*x509.Certificate{{Raw: append(append([]byte(nil), chain[0].Raw...), chain[1].Raw...)}}, p.id(t)) {
			t.Error("two certificates have the key of one as long")
		}
	})
}

func (p *pki) id(t testing.TB) spiffeid.TrustDomain {
	t.Helper()
	return spiffeid.RequireTrustDomainFromString(testGrantTD)
}

// TestRememberedChainsAreBounded, and the oldest go first.
func TestRememberedChainsAreBounded(t *testing.T) {
	v := newChainCache()
	key := func(i int) (k chainKey) {
		k[0], k[1] = byte(i), byte(i>>8)
		return k
	}
	for i := range 3 * maxChains {
		v.keep(key(i), &verifiedChain{})
		v.keep(key(i), &verifiedChain{}) // the same again takes no room
	}
	if len(v.found) != maxChains || len(v.order) != maxChains {
		t.Errorf("%d and %d of at most %d", len(v.found), len(v.order), maxChains)
	}
	for i := range 3 * maxChains {
		if _, ok := v.found[key(i)]; ok != (i >= 2*maxChains) {
			t.Fatalf("chain %d of %d: %v", i, 3*maxChains, ok)
		}
	}
}
