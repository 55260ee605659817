package control

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/ca"
)

// handed is asserted on a stream of calls, by a follower at whoever leads.
func (c *cluster) handed(t *testing.T, who tls.Certificate, target, body string) (status int, answer, via string) {
	t.Helper()
	c.until("the leader answers", func() bool {
		as, at := c.follower(), c.leader()
		via = as.ID()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		a, err := as.n.links.do(ctx, at.ID(), bytes.Join(who.Certificate, nil), &forwardedCall{
			target: target, contentType: "application/json", requestID: api.NewRequestID(), body: []byte(body),
		})
		if err != nil {
			t.Log(err)
			return false
		}
		status, answer = a.status, string(a.body)
		return status != http.StatusServiceUnavailable
	})
	return status, answer, via
}

// TestStreamOfStolenKey: what comes on a stream of calls is believed no more than
// what comes by HTTP.
func TestStreamOfStolenKey(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	alice := c.identity(t, "spiffe://acme.test/user/alice")
	status, answer, thief := c.handed(t, alice, "/v1/requests", rawRequest)
	if status != http.StatusCreated {
		t.Fatalf("%d %s", status, answer)
	}
	if entry := c.lastEntry(t); entry.Node != thief || entry.Actor != "spiffe://acme.test/user/alice" {
		t.Errorf("the entry says %+v, %s vouched", entry, thief)
	}
	tampered := alice
	tampered.Certificate = [][]byte{bytes.Clone(alice.Certificate[0])}
	tampered.Certificate[0][len(tampered.Certificate[0])-1] ^= 1
	self := c.forged(t, func(*x509.Certificate) {})
	own, err := ca.GenerateKey()
	must(t, err)
	self.Leaf.PublicKey = own.Public()
	der, err := x509.CreateCertificate(rand.Reader, self.Leaf, self.Leaf, own.Public(), own)
	must(t, err)
	self.Certificate = [][]byte{der}
	csr, _ := newCSR(t)
	minted, err := c.as("user/alice").GrantCertificate(t.Context(), c.granted().ID, csr)
	must(t, err)
	chain, err := ca.DecodeCertificates([]byte(minted.Certificate))
	must(t, err)
	grant := tls.Certificate{Certificate: [][]byte{chain[0].Raw, chain[1].Raw}}
	for name, cert := range map[string]tls.Certificate{
		"tampered": tampered, "self-signed": self, "nothing": {}, "no certificate": {Certificate: [][]byte{{0x30, 0}}}, "a grant": grant,
	} {
		for range 2 { // a refusal is not forgotten either
			if status, answer, _ := c.handed(t, cert, "/v1/requests", rawRequest); status != http.StatusUnauthorized {
				t.Errorf("%s: %d %s", name, status, answer)
			}
		}
	}
	for target, want := range map[string]int{"/peer/cosign": 404, "/v1//requests": 404, "/v1/requests?x=%zz": 422, "/v1/%72equests": 404} {
		if status, answer, _ := c.handed(t, alice, target, rawRequest); status != want {
			t.Errorf("%s: %d %s, want %d", target, status, answer, want)
		}
	}
}

// TestMalformedStream: a stream on which a node says what none does ends, and the
// leader goes on.
func TestMalformedStream(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	leader, thief := c.leader(), c.follower()
	frame := func(kind byte, content ...byte) []byte {
		return appendFrame(nil, kind, func(b []byte) []byte { return append(b, content...) })
	}
	call := func(slot uint16, more ...byte) []byte {
		return appendFrame(nil, frameCall, func(b []byte) []byte {
			return append((&forwardedCall{target: "/v1/requests"}).append(b, 1, slot), more...)
		})
	}
	chain := frame(frameChain, 0, 0, 'x')
	for name, text := range map[string][]byte{
		"a frame of nothing":       {0, 0, 0, 0, frameCall},
		"a frame too long":         append(binary.BigEndian.AppendUint32(nil, maxCallFrame+1), frameCall),
		"an unknown kind":          frame(99),
		"an answer":                frame(frameAnswer),
		"a chain without a slot":   frame(frameChain, 0),
		"a slot that is not there": frame(frameChain, 1, 0),
		"a chain too long":         frame(frameChain, make([]byte, 2+maxChainHeader+1)...),
		"nobody's call":            call(0),
		"a call of no slot":        append(bytes.Clone(chain), call(callSlots)...),
		"a call cut short":         append(bytes.Clone(chain), frame(frameCall, 0, 0, 0)...),
		"a call that goes on":      append(bytes.Clone(chain), call(0, 'x')...),
		"a field without end":      append(bytes.Clone(chain), frame(frameCall, append(make([]byte, 10), 255, 255, 255, 255)...)...),
	} {
		conn, err := thief.n.store.DialPeer(t.Context(), leader.ID())
		must(t, err)
		must(t, conn.SetDeadline(time.Now().Add(30*time.Second)))
		_, err = io.WriteString(conn, callMagic)
		must(t, err)
		_, err = conn.Write(text)
		must(t, err)
		rest, err := io.ReadAll(conn)
		if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
			t.Errorf("%s: the stream goes on", name)
		}
		if len(rest) > len(callMagic) {
			t.Errorf("%s is answered %q", name, rest)
		}
		must(t, conn.Close())
	}
	alice := c.identity(t, "spiffe://acme.test/user/alice")
	if status, answer, _ := c.handed(t, alice, "/v1/requests", rawRequest); status != http.StatusCreated {
		t.Errorf("afterwards: %d %s", status, answer)
	}
}

// A leader that knows no streams of calls gets them by HTTP.
func TestCallsToAnEarlierNode(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	follower := c.follower()
	follower.n.links.dial = func(context.Context, string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go func() { _, _ = io.ReadFull(theirs, make([]byte, len(callMagic))); _ = theirs.Close() }()
		return ours, nil
	}
	c.until("it is answered all the same", func() bool {
		_, err := c.once(follower, "user/alice").CreateRequest(t.Context(), readAccounts())
		return err == nil && !follower.n.store.IsLeader()
	})
	follower.n.links.mu.Lock()
	defer follower.n.links.mu.Unlock()
	if n := len(follower.n.links.unable); n == 0 {
		t.Error("no node is known to know no streams")
	}
}

// answering serves one end of a pipe as a leader does, by the answer to a call.
func answering(conn net.Conn, answer func(chain []byte, call *forwardedCall) *callAnswer) {
	defer func() { _ = conn.Close() }()
	if _, err := io.ReadFull(conn, make([]byte, len(callMagic))); err != nil {
		return
	}
	out := &frameWriter{conn: conn}
	_, _ = out.send(func(b []byte) []byte { return append(b, callMagic...) })
	slots := map[uint16][]byte{}
	in := bufio.NewReader(conn)
	for {
		kind, content, err := readFrame(in)
		if err != nil {
			return
		}
		switch kind {
		case frameChain:
			slots[binary.BigEndian.Uint16(content)] = content[2:]
		case frameCall:
			call, number, slot, err := parseCall(content)
			if err != nil {
				return
			}
			if a := answer(slots[slot], call); a != nil {
				go func() {
					_, _ = out.send(func(b []byte) []byte {
						return appendFrame(b, frameAnswer, func(b []byte) []byte { return a.append(b, number) })
					})
				}()
			}
		}
	}
}

func linksTo(serve func(net.Conn)) *callLinks {
	return newCallLinks(func(context.Context, string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go serve(theirs)
		return ours, nil
	})
}

// TestEachCallIsItsCallers: with more callers at once than the leader keeps chains
// of, each call comes with its own caller's, and gets its own answer.
func TestEachCallIsItsCallers(t *testing.T) {
	t.Parallel()
	links := linksTo(func(c net.Conn) {
		answering(c, func(chain []byte, call *forwardedCall) *callAnswer {
			return &callAnswer{status: 200, body: fmt.Appendf(nil, "%s %s", chain, call.body)}
		})
	})
	defer links.close()
	var group sync.WaitGroup
	for i := range 3 * callSlots {
		group.Go(func() {
			for n := range 5 {
				want := fmt.Sprintf("caller %d call %d", i, n)
				a, err := links.do(t.Context(), "n1", fmt.Appendf(nil, "caller %d", i), &forwardedCall{body: fmt.Appendf(nil, "call %d", n)})
				if err != nil || string(a.body) != want {
					t.Errorf("%s gets %+v, %v", want, a, err)
					return
				}
			}
		})
	}
	group.Wait()
}

// TestLeaderFallsSilent: a machine that lost its power closes no connection. Those
// who wait are told in seconds that nobody knows what became of their calls.
func TestLeaderFallsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		links := linksTo(func(c net.Conn) { answering(c, func([]byte, *forwardedCall) *callAnswer { return nil }) })
		defer links.close()
		begin := time.Now()
		_, err := links.do(t.Context(), "n1", nil, &forwardedCall{})
		if !errors.Is(err, errBroken) || errors.Is(err, errNotSent) {
			t.Errorf("the call ends with %v", err)
		}
		if took := time.Since(begin); took < 2*callQuiet || took > 4*callQuiet {
			t.Errorf("after %s", took)
		}
	})
}

// A call that a stopping leader did not begin may go to the next one; one that
// broke off may not.
func TestCallsThatWereNotAnswered(t *testing.T) {
	t.Parallel()
	for status, sent := range map[int]bool{statusNotTaken: false, statusBroken: true} {
		links := linksTo(func(c net.Conn) {
			answering(c, func([]byte, *forwardedCall) *callAnswer { return &callAnswer{status: status} })
		})
		_, err := links.do(t.Context(), "n1", nil, &forwardedCall{})
		if err == nil || errors.Is(err, errNotSent) == sent {
			t.Errorf("status %d: %v", status, err)
		}
		links.close()
		if _, err := links.do(t.Context(), "n1", nil, &forwardedCall{}); !errors.Is(err, errNotSent) {
			t.Errorf("after the end: %v", err)
		}
	}
}

// FuzzCallFrames: what is read, as a call or as an answer, is written the same.
func FuzzCallFrames(f *testing.F) {
	f.Add((&forwardedCall{target: "/v1/requests", key: "k", body: []byte("{}")}).append(nil, 7, 3))
	f.Add((&callAnswer{status: 201, body: []byte("{}")}).append(nil, 7))
	f.Fuzz(func(t *testing.T, content []byte) {
		if call, number, slot, err := parseCall(content); err == nil && !bytes.Equal(call.append(nil, number, slot), content) {
			t.Errorf("%x is read as %+v", content, call)
		}
		if a, number, err := parseAnswer(content); err == nil && !bytes.Equal(a.append(nil, number), content) {
			t.Errorf("%x is read as %+v", content, a)
		}
	})
}
