package raftstore

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

type testKey struct {
	public  ed25519.PublicKey
	private ed25519.PrivateKey
}

func newTestKeys(t *testing.T, n int) []testKey {
	t.Helper()
	keys := make([]testKey, n)
	for i := range keys {
		pub, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		keys[i] = testKey{pub, key}
	}
	return keys
}

// muxes are three nodes' connections without raft, on loopback.
type muxes struct {
	settings map[string]settings
	nodes    map[string]*mux
	keys     map[string]testKey
	log      *logText
}

func newMuxes(t *testing.T) *muxes {
	t.Helper()
	all := &muxes{settings: map[string]settings{}, nodes: map[string]*mux{}, keys: map[string]testKey{}, log: &logText{}}
	ids := []string{"n1", "n2", "n3"}
	var members []Member
	listeners := map[string]net.Listener{}
	for i, k := range newTestKeys(t, 3) {
		l := listen(t, "127.0.0.1:0")
		listeners[ids[i]], all.keys[ids[i]] = l, k
		members = append(members, Member{ID: ids[i], Address: l.Addr().String(), Key: k.public})
	}
	for _, id := range ids {
		set, err := Config{
			ID: id, Dir: "unused", Listener: listeners[id], Key: all.keys[id].private, Members: members, Machine: kv{},
			Logger: slog.New(slog.NewTextHandler(all.log, nil)),
		}.settings()
		if err != nil {
			t.Fatal(err)
		}
		all.settings[id] = set
		m, err := newMux(set, newRoster(set), testLog{})
		if err != nil {
			t.Fatal(err)
		}
		all.nodes[id] = m
		t.Cleanup(func() {
			if err := m.close(); err != nil {
				t.Errorf("close: %v", err)
			}
		})
	}
	return all
}

// testLog is an ownLog.
type testLog struct{ line lineage }

func (testLog) standing() standing          { return standingMember }
func (l testLog) lineage() lineage          { return l.line }
func (testLog) founding() [sha256.Size]byte { return [sha256.Size]byte{1} }

// logText is a log that tests read.
type logText struct {
	mu   sync.Mutex
	text strings.Builder // guarded by mu
}

func (l *logText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logText) contains(s string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.text.String(), s)
}

func dialApp(t *testing.T, m *mux, to string) (*PeerConn, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	return m.dial(ctx, to, streamApp)
}

func TestApplicationStreams(t *testing.T) {
	all := newMuxes(t)
	out, err := dialApp(t, all.nodes["n1"], "n2")
	if err != nil {
		t.Fatal(err)
	}
	in, err := all.nodes["n2"].queues[streamApp].Accept()
	if err != nil {
		t.Fatal(err)
	}
	if id := in.(interface{ PeerID() string }).PeerID(); id != "n1" {
		t.Errorf("the accepting side is told its peer is %q, want n1", id)
	}
	if out.PeerID() != "n2" {
		t.Errorf("the dialing side is told its peer is %q, want n2", out.PeerID())
	}
	state := in.(*PeerConn).ConnectionState()
	if state.Version != tls.VersionTLS13 || state.DidResume {
		t.Errorf("version %#x, resumed %v", state.Version, state.DidResume)
	}
	if _, err := out.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if err := out.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(in)
	if err != nil || string(got) != "hello" {
		t.Errorf("read %q, %v", got, err)
	}
	for _, id := range []string{"n1", "n9", ""} {
		if c, err := dialApp(t, all.nodes["n1"], id); err == nil {
			t.Errorf("n1 dialed %q", id)
			_ = c.Close()
		}
	}
}

// attacker is what a test presents to a node, or answers to one.
func selfSigned(t *testing.T, pub, key any) tls.Certificate {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// Each of these knocks at n1 and must not be let in.
func TestStrangersAreRefused(t *testing.T) {
	all := newMuxes(t)
	stranger := newTestKeys(t, 1)[0]
	weak, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	n1, n2 := all.keys["n1"], all.keys["n2"]
	with := func(certs ...tls.Certificate) *tls.Config {
		return &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, NextProtos: []string{alpn}, Certificates: certs}
	}
	unalpn := with(selfSigned(t, n2.public, n2.private))
	unalpn.NextProtos = nil
	old := with(selfSigned(t, n2.public, n2.private))
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	chain := selfSigned(t, stranger.public, stranger.private)
	chain.Certificate = append(chain.Certificate, selfSigned(t, n2.public, n2.private).Certificate...)
	tests := map[string]*tls.Config{
		"a key that no member has":                  with(selfSigned(t, stranger.public, stranger.private)),
		"no certificate":                            with(),
		"a member's public key without its private": with(selfSigned(t, n2.public, stranger.private)),
		"a member's certificate behind the own one": with(chain),
		"another kind of key":                       with(selfSigned(t, weak.Public(), weak)),
		"n1's own key, mirrored or stolen":          with(selfSigned(t, n1.public, n1.private)),
		"a member's key meant for another protocol": unalpn,
		"a member's key over TLS 1.2":               old,
	}
	for name, config := range tests {
		t.Run(name, func(t *testing.T) {
			if err := knock(t, all, config, all.nodes["n2"].preface(streamApp).encode()); err == nil {
				t.Error("let in")
			}
		})
	}
	if !all.log.contains("refused a connection") {
		t.Error("no refusal was logged")
	}
	t.Run("and the member itself is let in", func(t *testing.T) {
		config := with(selfSigned(t, n2.public, n2.private))
		if err := knock(t, all, config, all.nodes["n2"].preface(streamApp).encode()); err != nil {
			t.Errorf("refused: %v", err)
		}
	})
	odd := all.nodes["n2"].preface(streamApp)
	odd.timing.Lease++
	for name, head := range map[string][]byte{
		"with other settings":       odd.encode(),
		"with an unknown kind":      all.nodes["n2"].preface('x').encode(),
		"with half a first message": all.nodes["n2"].preface(streamApp).encode()[:20],
	} {
		t.Run("a member "+name, func(t *testing.T) {
			config := with(selfSigned(t, n2.public, n2.private))
			if err := knock(t, all, config, head); err == nil {
				t.Error("let in")
			}
		})
	}
}

// knock connects to n1 and returns nil when it is let in.
func knock(t *testing.T, all *muxes, config *tls.Config, head []byte) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	d := tls.Dialer{Config: config}
	conn, err := d.DialContext(ctx, "tcp", all.settings["n1"].self.Address)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if _, err := conn.Write(head); err != nil {
		return err
	}
	if len(head) < prefaceSize {
		if err := conn.(*tls.Conn).CloseWrite(); err != nil {
			return err
		}
	}
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	answer, err := readReply(conn)
	if err == nil && answer.kind == refusedKind {
		err = errors.New(answer.reason)
	}
	return err
}

// Who answers at n2's address must hold n2's key; another member's will not do.
func TestImpostorsAreNotTalkedTo(t *testing.T) {
	all := newMuxes(t)
	stranger := newTestKeys(t, 1)[0]
	n2, n3 := all.keys["n2"], all.keys["n3"]
	for name, certificate := range map[string]tls.Certificate{
		"a stranger":     selfSigned(t, stranger.public, stranger.private),
		"another member": selfSigned(t, n3.public, n3.private),
		"n2's public key without its secret": {
			Certificate: selfSigned(t, n2.public, stranger.private).Certificate, PrivateKey: stranger.private,
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := tls.NewListener(listen(t, "127.0.0.1:0"), &tls.Config{
				MinVersion: tls.VersionTLS13, NextProtos: []string{alpn}, Certificates: []tls.Certificate{certificate},
				ClientAuth: tls.RequireAnyClientCert,
			})
			defer func() { _ = l.Close() }()
			got := make(chan []byte, 1)
			go func() {
				conn, err := l.Accept()
				if err != nil {
					got <- nil
					return
				}
				defer func() { _ = conn.Close() }()
				b, _ := io.ReadAll(io.LimitReader(conn, 1))
				got <- b
			}()
			m := all.nodes["n1"]
			there := m.roster.members["n2"]
			m.roster.members["n2"] = Member{ID: "n2", Address: l.Addr().String(), Key: there.Key}
			conn, err := dialApp(t, m, "n2")
			m.roster.members["n2"] = there
			if err == nil {
				_ = conn.Close()
				t.Error("n1 took it for n2")
			}
			if name != "n2's public key without its secret" && !errors.Is(err, ErrUnknownPeer) {
				t.Errorf("error %v, want ErrUnknownPeer", err)
			}
			if b := <-got; len(b) > 0 {
				t.Errorf("n1 sent it %q", b)
			}
		})
	}
}

func TestFloodOfSilentStrangers(t *testing.T) {
	all := newMuxes(t)
	var d net.Dialer
	var flood []net.Conn
	for range 2 * handshakeSlots {
		conn, err := d.DialContext(t.Context(), "tcp", all.settings["n1"].self.Address)
		if err != nil {
			t.Fatal(err)
		}
		flood = append(flood, conn)
	}
	conn, err := dialApp(t, all.nodes["n2"], "n1")
	if err != nil {
		t.Errorf("the flood keeps a member out: %v", err)
	} else if err := conn.Close(); err != nil {
		t.Error(err)
	}
	m := all.nodes["n1"]
	m.mu.Lock()
	if n := len(m.greeting); n > handshakeSlots {
		t.Errorf("%d handshakes at once, want at most %d", n, handshakeSlots)
	}
	m.mu.Unlock()
	if err := flood[0].SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	var timeout net.Error
	if _, err := flood[0].Read(make([]byte, 1)); err == nil || errors.As(err, &timeout) && timeout.Timeout() {
		t.Errorf("the oldest of the flood reads %v, want its end", err)
	}
	for _, conn := range flood {
		_ = conn.Close()
	}
}

// A peer that crashed leaves connections behind that nobody closes; they must not keep it out.
func TestOldestStreamMakesRoom(t *testing.T) {
	all := newMuxes(t)
	go func() { // ends with the listener
		for {
			if _, err := all.nodes["n1"].queues[streamApp].Accept(); err != nil {
				return
			}
		}
	}()
	var streams []*PeerConn
	for range peerStreams + 1 {
		conn, err := dialApp(t, all.nodes["n2"], "n1")
		if err != nil {
			t.Fatal(err)
		}
		streams = append(streams, conn)
	}
	if err := streams[0].SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := streams[0].Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the oldest stream reads %v, want its end", err)
	}
	last := streams[peerStreams]
	if err := last.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	var timeout net.Error
	if _, err := last.Read(make([]byte, 1)); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("the newest stream reads %v, want nothing yet", err)
	}
}

// A node started with other time-outs is kept out of the cluster rather than let vote by other rules.
func TestOtherSettingsAreRefused(t *testing.T) {
	c := newCluster(t, nil)
	c.propose("set a 1")
	odd := c.followers()[0].cfg.ID
	c.stop(odd)
	c.adjust = func(id string, cfg *Config) {
		if id == odd {
			cfg.Timing.Election = time.Second
		}
	}
	c.start(odd)
	_, err := c.leader().DialPeer(t.Context(), odd)
	if err == nil || !strings.Contains(err.Error(), "not let in") {
		t.Errorf("dial a node with other settings: %v", err)
	}
	c.propose("set a 2")
	c.stop(odd)
	c.adjust = nil
	index, _ := c.propose("set a 3")
	await(t, c.start(odd), index)
}
