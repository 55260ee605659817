package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestRenewingSource is over the moments of a certificate's life.
func TestRenewingSource(t *testing.T) {
	p := newPKI(t)
	synctest.Test(t, func(t *testing.T) {
		fetched, fail := 0, false // by the source's goroutine, which synctest.Wait waits for
		s := NewRenewingSource(func(context.Context) (*tls.Certificate, error) {
			fetched++
			if fail {
				return nil, errors.New("no quorum")
			}
			c := p.mint(leafSpec{uris: []string{alice}, issuer: p.idIssuer, notBefore: time.Now().Add(-time.Minute), notAfter: time.Now().Add(time.Hour)})
			return &c, nil
		}, nil)
		get := func() string {
			c, err := s.Certificate(t.Context())
			synctest.Wait()
			if err != nil {
				return err.Error()
			}
			return fmt.Sprint(c.Leaf.SerialNumber)
		}
		first := get()
		time.Sleep(25 * time.Minute)
		if get() != first || fetched != 1 {
			t.Errorf("renewed before half of its life: %d", fetched)
		}
		time.Sleep(10 * time.Minute)
		fail = true
		if again := get(); again != first || get() != again || fetched != 2 {
			t.Errorf("a failed renewal: %d fetches", fetched)
		}
		fail = false
		time.Sleep(time.Minute)
		if get() != first || fetched != 3 { // the old one serves while the new one is fetched
			t.Errorf("a renewal: %d fetches", fetched)
		}
		second := get()
		if second == first || fetched != 3 {
			t.Errorf("not renewed: %d", fetched)
		}
		fail = true
		time.Sleep(2 * time.Hour)
		for range 3 { // whoever asks next hears the same for a while
			if got := get(); !strings.Contains(got, "no quorum") || fetched != 4 {
				t.Errorf("an expired certificate: %s, %d fetches", got, fetched)
			}
		}
		fail = false
		time.Sleep(renewRetry)
		if got := get(); got == second || strings.Contains(got, "no quorum") {
			t.Errorf("after all: %s", got)
		}
	})
	for _, bad := range []func(context.Context) (*tls.Certificate, error){
		func(context.Context) (*tls.Certificate, error) { return nil, nil }, //nolint:nilnil // a source that breaks its word
		func(context.Context) (*tls.Certificate, error) {
			return &tls.Certificate{Certificate: [][]byte{{1}}}, nil
		},
		func(context.Context) (*tls.Certificate, error) { c := p.grant(-time.Hour, "tcp"); return &c, nil },
	} {
		if c, err := NewRenewingSource(bad, nil).Certificate(t.Context()); err == nil {
			t.Errorf("%v was given out", c)
		}
	}
}

// TestRenewalHoldsUpNobody: control nodes that take the call and never answer are
// no reason to wait while the certificate lives; and when it has expired, all who
// wait share one call and each may leave.
func TestRenewalHoldsUpNobody(t *testing.T) {
	p := newPKI(t)
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int64
		dead := false
		s := NewRenewingSource(func(ctx context.Context) (*tls.Certificate, error) {
			calls.Add(1)
			if dead {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			c := p.mint(leafSpec{uris: []string{alice}, issuer: p.idIssuer, notBefore: time.Now().Add(-time.Minute), notAfter: time.Now().Add(time.Hour)})
			return &c, nil
		}, nil)
		if _, err := s.Certificate(t.Context()); err != nil {
			t.Fatal(err)
		}
		dead = true
		time.Sleep(40 * time.Minute)
		began := time.Now()
		for range 100 {
			if _, err := s.Certificate(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		took := time.Since(began)
		synctest.Wait() // for the call to have begun
		if took > 0 || calls.Load() != 2 {
			t.Errorf("%s for a certificate that is there, and %d calls", took, calls.Load())
		}
		time.Sleep(time.Hour)
		began = time.Now()
		ctx, leave := context.WithTimeout(t.Context(), time.Second)
		defer leave()
		ended := make(chan time.Duration, 101)
		wait := func(ctx context.Context) {
			if _, err := s.Certificate(ctx); err == nil {
				t.Error("an expired certificate was given out")
			}
			ended <- time.Since(began)
		}
		go wait(ctx) // first, so that the call is its own
		synctest.Wait()
		for range 100 {
			go wait(t.Context())
		}
		if took := <-ended; took != time.Second {
			t.Errorf("who leaves after a second was let go after %s", took)
		}
		for range 100 {
			if took := <-ended; took > renewTimeout {
				t.Errorf("the call was waited for %s", took)
			}
		}
		if calls.Load() != 3 {
			t.Errorf("%d calls", calls.Load())
		}
	})
}

// TestRunRenews with nobody dialling; and stops asking for what has ended.
func TestRunRenews(t *testing.T) {
	p := newPKI(t)
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int64
		var gone atomic.Bool
		s := NewRenewingSource(func(context.Context) (*tls.Certificate, error) {
			calls.Add(1)
			if gone.Load() {
				return nil, errors.New("the grant has ended")
			}
			c := p.mint(leafSpec{uris: []string{alice}, issuer: p.idIssuer, notBefore: time.Now().Add(-time.Minute), notAfter: time.Now().Add(time.Hour)})
			return &c, nil
		}, nil)
		if _, err := s.Certificate(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		go s.Run(ctx)
		time.Sleep(3*time.Hour + time.Minute)
		if n := calls.Load(); n != 7 {
			t.Errorf("%d certificates in three hours of which each lives one", n)
		}
		gone.Store(true)
		time.Sleep(2 * time.Hour)
		n := calls.Load()
		time.Sleep(time.Hour)
		if more := calls.Load() - n; more != 0 {
			t.Errorf("%d calls for what has ended", more)
		}
		stop()
		synctest.Wait()
	})
}
