package ca

import (
	"errors"
	"math/rand/v2"
	"testing"
	"time"
)

// However late a certificate is minted, and whatever life it is asked to have,
// it ends by the grant's expiry and by the issuer's.
func TestInvariant03_NorWithALateStart(t *testing.T) {
	f := newFixture(t, 1)
	issuer := f.node(0).Grants
	issuerEnd := issuer.Certificate().NotAfter
	pub := got(GenerateKey())(t).Public()
	for _, c := range []struct {
		name        string
		late        time.Duration // when it is minted
		ttl         time.Duration
		grantExpiry time.Time
		want        time.Time // zero: refused
	}{
		{"the life asked for", 0, 5 * time.Minute, testNow().Add(time.Hour), testNow().Add(5 * time.Minute)},
		{"late: the grant's end", 58 * time.Minute, 5 * time.Minute, testNow().Add(time.Hour), testNow().Add(time.Hour)},
		{"exactly the grant's end", 55 * time.Minute, 5 * time.Minute, testNow().Add(time.Hour), testNow().Add(time.Hour)},
		{"a second left", time.Hour - time.Second, 5 * time.Minute, testNow().Add(time.Hour), testNow().Add(time.Hour)},
		{"a broken second is dropped", time.Hour - 2*time.Second, 5 * time.Minute, testNow().Add(time.Hour - time.Millisecond), testNow().Add(time.Hour - time.Second)},
		{"less than a second left", time.Hour - 500*time.Millisecond, 5 * time.Minute, testNow().Add(time.Hour - time.Millisecond), time.Time{}},
		{"at the grant's end", time.Hour, 5 * time.Minute, testNow().Add(time.Hour), time.Time{}},
		{"after the grant's end", 2 * time.Hour, 5 * time.Minute, testNow().Add(time.Hour), time.Time{}},
		{"near the issuer's end", issuerEnd.Sub(testNow()) - time.Minute, 5 * time.Minute, issuerEnd.Add(time.Hour), issuerEnd},
		{"after the issuer's end", issuerEnd.Sub(testNow()) + time.Second, 5 * time.Minute, issuerEnd.Add(time.Hour), time.Time{}},
		{"a life of years", 0, 100 * 365 * 24 * time.Hour, testNow().Add(time.Hour), testNow().Add(time.Hour)},
		{"a life that overflows", 0, 1<<63 - 1, testNow().Add(time.Hour), testNow().Add(time.Hour)},
	} {
		t.Run(c.name, func(t *testing.T) {
			spec := f.grantSpec(pub)
			spec.Now, spec.TTL, spec.GrantExpiry = testNow().Add(c.late), c.ttl, c.grantExpiry
			ticket, err := issuer.PrepareGrant(spec)
			if c.want.IsZero() {
				if !errors.Is(err, ErrExpired) {
					t.Fatalf("error %v, want %v", err, ErrExpired)
				}
				return
			}
			leaf := signed(t, ticket, err)[0]
			if !leaf.NotAfter.Equal(c.want) || !ticket.Record().NotAfter.Equal(c.want) {
				t.Errorf("it ends at %s and its record says %s, want %s", leaf.NotAfter, ticket.Record().NotAfter, c.want)
			}
		})
	}
	for range 2000 {
		spec := f.grantSpec(pub)
		spec.Now = testNow().Add(time.Duration(rand.Int64N(int64(100 * 24 * time.Hour))))
		spec.TTL = time.Duration(rand.Int64N(int64(2*time.Hour))) + 1
		spec.GrantExpiry = spec.Now.Add(time.Duration(rand.Int64N(int64(2 * time.Hour))))
		v, err := clamp(issuer.Certificate(), spec.Now, spec.TTL, spec.Skew, spec.GrantExpiry)
		if err != nil {
			if !errors.Is(err, ErrExpired) {
				t.Fatal(err)
			}
			continue
		}
		for what, end := range map[string]time.Time{"the grant": spec.GrantExpiry, "the issuer": issuerEnd, "its life": spec.Now.Add(spec.TTL)} {
			if v.notAfter.After(end) {
				t.Fatalf("minted at %s for %s it outlives %s, which ends at %s: %s", spec.Now, spec.TTL, what, end, v.notAfter)
			}
		}
	}
}

func TestNotBefore(t *testing.T) {
	f := newFixture(t, 1)
	issuer := f.node(0).Grants
	start := issuer.Certificate().NotBefore
	for _, c := range []struct {
		name string
		now  time.Time
		skew time.Duration
		want time.Time
	}{
		{"backdated by the skew", testNow(), 10 * time.Second, testNow().Add(-10 * time.Second)},
		{"a broken second is dropped", testNow().Add(999 * time.Millisecond), 10 * time.Second, testNow().Add(-10 * time.Second)},
		{"no skew", testNow(), 0, testNow()},
		{"not before the issuer", start.Add(time.Second), time.Minute, start},
	} {
		spec := f.grantSpec(got(GenerateKey())(t).Public())
		spec.Now, spec.Skew = c.now, c.skew
		ticket := got(issuer.PrepareGrant(spec))(t)
		if nb := ticket.Record().NotBefore; !nb.Equal(c.want) {
			t.Errorf("%s: not before %s, want %s", c.name, nb, c.want)
		}
	}
	spec := f.grantSpec(got(GenerateKey())(t).Public())
	spec.Now = start.Add(-time.Hour)
	if _, err := issuer.PrepareGrant(spec); !errors.Is(err, ErrInvalid) {
		t.Errorf("before the issuer is valid: %v", err)
	}
}

func TestIdentityEndsWithItsIssuer(t *testing.T) {
	f := newFixture(t, 1)
	issuer := f.node(0).Identity
	spec := f.identitySpec(got(GenerateKey())(t).Public())
	spec.Now, spec.TTL = issuer.Certificate().NotAfter.Add(-time.Hour), MaxIdentityTTL
	ticket := got(issuer.PrepareIdentity(spec))(t)
	if end := ticket.Record().NotAfter; !end.Equal(issuer.Certificate().NotAfter) {
		t.Errorf("it ends at %s, its issuer at %s", end, issuer.Certificate().NotAfter)
	}
}
