package pgwire

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/jackc/pgx/v5/pgproto3"
)

func packet(code uint32, rest string) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(8+len(rest)))
	return append(binary.BigEndian.AppendUint32(b, code), rest...)
}

// TestReadFirst: what a client can begin with, and nothing that could be read in two ways.
func TestReadFirst(t *testing.T) {
	const v30 = 3 << 16
	good := "user\x00alice\x00database\x00orders\x00application_name\x00\x00\x00"
	for _, row := range []struct {
		name string
		in   []byte
		kind Kind // 0: ErrFirst
	}{
		{"startup", packet(v30, good), KindStartup},
		{"startup of 3.2", packet(v30|2, good), KindStartup},
		{"startup of a version to come", packet(v30|9999, good), KindStartup},
		{"nothing asked", packet(v30, "\x00"), KindStartup},
		{"TLS", packet(codeTLS, ""), KindTLS},
		{"GSS", packet(codeGSS, ""), KindGSS},
		{"cancel", packet(codeCancel, "\x00\x00\x00\x01abcd"), KindCancel},
		{"cancel with a long key", packet(codeCancel, "\x00\x00\x00\x01"+strings.Repeat("k", 256)), KindCancel},
		{"version 2", packet(2<<16, good), 0},
		{"version 4", packet(4<<16, good), 0},
		{"TLS and more", packet(codeTLS, "x"), 0},
		{"cancel without a key", packet(codeCancel, "\x00\x00\x00\x01"), 0},
		{"cancel with a key too long", packet(codeCancel, "\x00\x00\x00\x01"+strings.Repeat("k", 257)), 0},
		{"no end", packet(v30, "user\x00alice\x00"), 0},
		{"empty", packet(v30, ""), 0},
		{"no value", packet(v30, "user\x00\x00"), 0},
		{"bytes after the end", packet(v30, "user\x00alice\x00\x00x\x00"), 0},
		{"a second list after the end", packet(v30, "user\x00alice\x00\x00user\x00bob\x00\x00"), 0},
		{"twice", packet(v30, "user\x00alice\x00user\x00bob\x00\x00"), 0},
		{"twice in other case", packet(v30, "TimeZone\x00UTC\x00timezone\x00CET\x00\x00"), 0},
		{"too many", packet(v30, manyParameters(65)+"\x00"), 0},
		{"too long", binary.BigEndian.AppendUint32(nil, maxStartup+1), 0},
		{"too short", []byte{0, 0, 0, 7, 0, 3, 0}, 0},
		{"negative", []byte{0xff, 0xff, 0xff, 0xff, 0, 3, 0, 0}, 0},
		{"HTTP", []byte("GET / HTTP/1.1\r\n\r\n"), 0},
	} {
		rest := bytes.NewReader(append(slices.Clone(row.in), "left"...))
		f, err := ReadFirst(iotest.OneByteReader(rest))
		if row.kind == 0 {
			if !errors.Is(err, ErrFirst) {
				t.Errorf("%s: %+v, %v", row.name, f, err)
			}
			continue
		}
		if err != nil || f.Kind != row.kind {
			t.Errorf("%s: %+v, %v", row.name, f, err)
		}
		if rest.Len() != len("left") {
			t.Errorf("%s: read %d bytes too many", row.name, len("left")-rest.Len())
		}
	}
	f, err := ReadFirst(bytes.NewReader(packet(v30, good)))
	if user, ok := f.Startup.Get("user"); err != nil || !ok || user != "alice" || len(f.Startup.Params) != 3 {
		t.Errorf("%+v %v", f, err)
	}
	if _, err := ReadFirst(bytes.NewReader(packet(v30, good)[:20])); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("cut off: %v", err)
	}
	for _, p := range []Parameter{{"", "x"}, {"a\x00b", "x"}, {"a", "x\x00user\x00postgres"}} {
		if _, err := (Startup{Params: []Parameter{p}}).append(nil); err == nil {
			t.Errorf("%q was sent", p)
		}
	}
}

func manyParameters(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(strings.Repeat("x", i+1) + "\x00v\x00")
	}
	return b.String()
}

// message is one of kind with a body.
func message(kind byte, body string) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{kind}, uint32(4+len(body))), body...)
}

// TestRelay: bytes go on as they came however they are cut, what is to be seen is seen before it goes on, and what
// may not come does not go on.
func TestRelay(t *testing.T) {
	all := slices.Concat(message('Q', "SELECT 1\x00"), message('S', ""), message('d', strings.Repeat("x", 100000)), message('P', "name\x00SELECT 2\x00\x00\x00"), message('Q', strings.Repeat("q", 50000)+"\x00"))
	for _, read := range []func(io.Reader) io.Reader{func(r io.Reader) io.Reader { return r }, iotest.OneByteReader, iotest.HalfReader, iotest.DataErrReader} {
		var out bytes.Buffer
		var seen []string
		r := Relay{
			From: FromClient,
			Peek: func(kind byte) int {
				if kind == 'Q' || kind == 'P' {
					return 100
				}
				return -1
			},
			Seen: func(m Message) error {
				if out.Len() > 0 && !bytes.HasPrefix(all, out.Bytes()) || bytes.HasSuffix(out.Bytes(), m.Prefix) && len(m.Prefix) > 0 {
					t.Error("seen too late")
				}
				text := Text(m.Prefix)
				if m.Type == 'P' {
					text = ParseText(m.Prefix)
				}
				seen = append(seen, string(text))
				return nil
			},
			Pass: func(b []byte, _ bool) error { out.Write(b); return nil },
		}
		if err := r.Run(read(bytes.NewReader(all))); err != nil || !bytes.Equal(out.Bytes(), all) {
			t.Errorf("%v; %d bytes of %d", err, out.Len(), len(all))
		}
		if want := []string{"SELECT 1", "SELECT 2", strings.Repeat("q", 100)}; !slices.Equal(seen, want) {
			t.Errorf("%q", seen)
		}
	}
	for _, row := range []struct {
		name string
		from Direction
		in   []byte
		max  int
	}{
		{"a password after the login", FromClient, message('p', "secret\x00"), 0},
		{"an unknown kind", FromClient, message('!', ""), 0},
		{"a server's message", FromClient, message('Z', "I"), 0},
		{"a start within", FromClient, packet(3<<16, "user\x00x\x00\x00"), 0},
		{"a long Sync", FromClient, message('S', strings.Repeat("x", smallLimit+1)), 0},
		{"over the limit", FromClient, message('Q', strings.Repeat("x", 70000)), 65536},
		{"negative", FromClient, []byte{'Q', 0xff, 0xff, 0xff, 0xff}, 0},
		{"length under itself", FromClient, []byte{'Q', 0, 0, 0, 3}, 0},
		{"over a gigabyte", FromClient, []byte{'Q', 0x7f, 0xff, 0xff, 0xff}, 0},
		{"the server's key", FromServer, message('K', "\x00\x00\x00\x01abcd"), 0},
		{"a password asked for", FromServer, message('R', "\x00\x00\x00\x03"), 0},
		{"replication", FromServer, message('W', "\x00\x00\x00"), 0},
		{"a client's message", FromServer, message('Q', "x\x00"), 0},
	} {
		var out bytes.Buffer
		good := message('d', "before")
		r := Relay{From: row.from, Max: row.max, Pass: func(b []byte, _ bool) error { out.Write(b); return nil }}
		if err := r.Run(bytes.NewReader(slices.Concat(good, row.in))); !errors.Is(err, ErrFrame) || !bytes.Equal(out.Bytes(), good) {
			t.Errorf("%s: %v, %d bytes passed", row.name, err, out.Len())
		}
	}
	r := Relay{From: FromClient, Pass: func([]byte, bool) error { return nil }}
	if err := r.Run(bytes.NewReader(message('Q', "abc")[:6])); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("cut off: %v", err)
	}
	failing := errors.New("no")
	r = Relay{From: FromClient, Peek: func(byte) int { return 0 }, Seen: func(Message) error { return failing }, Pass: func([]byte, bool) error { t.Error("passed"); return nil }}
	if err := r.Run(bytes.NewReader(message('Q', "abc"))); !errors.Is(err, failing) {
		t.Errorf("%v", err)
	}
}

// TestKeys: each session's is its own, and nothing near it opens it.
func TestKeys(t *testing.T) {
	var k Keys[string]
	if _, ok := k.Find(Cancel{}); ok {
		t.Error("no key was found")
	}
	a, err1 := k.Issue(0, "a")
	b, err2 := k.Issue(2, "b")
	if err1 != nil || err2 != nil || len(a.Secret) != 4 || len(b.Secret) != 32 || a.PID == b.PID || a.PID == 0 || a.PID>>31 != 0 {
		t.Fatalf("%+v %+v", a, b)
	}
	for _, row := range []struct {
		key  Cancel
		want string
	}{
		{a, "a"},
		{b, "b"},
		{Cancel{a.PID, b.Secret}, ""},
		{Cancel{b.PID, a.Secret}, ""},
		{Cancel{b.PID, b.Secret[:31]}, ""},
		{Cancel{b.PID, append(slices.Clone(b.Secret), 0)}, ""},
		{Cancel{a.PID, nil}, ""},
		{Cancel{a.PID, []byte{0, 0, 0, 0}}, ""},
		{Cancel{a.PID ^ 1, a.Secret}, ""},
		{Cancel{a.PID ^ 1, []byte{0, 0, 0, 0}}, ""},
	} {
		if got, ok := k.Find(row.key); got != row.want || ok != (row.want != "") {
			t.Errorf("%+v finds %q", row.key, got)
		}
	}
	for i := range a.Secret {
		for bit := range 8 {
			near := slices.Clone(a.Secret)
			near[i] ^= 1 << bit
			if _, ok := k.Find(Cancel{a.PID, near}); ok {
				t.Errorf("a key that differs in bit %d of byte %d opens", bit, i)
			}
		}
	}
	k.Revoke(a)
	if _, ok := k.Find(a); ok {
		t.Error("a revoked key opens")
	}
}

// TestSCRAM: the example of RFC 7677 §3, and servers that are none.
func TestSCRAM(t *testing.T) {
	begin := func() *scram {
		return &scram{password: "pencil", header: "n,,", nonce: "rOprNGfwEbeRWgbNEkqO", first: "n=user,r=rOprNGfwEbeRWgbNEkqO"}
	}
	const server = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
	s := begin()
	got, err := s.answer([]byte(server))
	if want := "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="; err != nil || string(got) != want {
		t.Fatalf("%s %v", got, err)
	}
	if err := s.finish([]byte("v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")); err != nil {
		t.Error(err)
	}
	for _, final := range []string{"", "v=", "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G5=", "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=", "e=other-error"} {
		if s.finish([]byte(final)) == nil {
			t.Errorf("%q was taken for a server's", final)
		}
	}
	if begin().finish([]byte("v=")) == nil {
		t.Error("a server that was never asked proved something")
	}
	for _, first := range []string{
		"", "r=rOprNGfwEbeRWgbNEkqO,s=W22Z,i=4096", "r=other,s=W22Z,i=4096", strings.Replace(server, "4096", "1", 1), strings.Replace(server, "4096", "99999999", 1),
		strings.Replace(server, "W22ZaJ0SNY7soEsUEjb6gQ==", "", 1), server + ",x=1", "m=ext," + server, strings.Replace(server, "i=", "", 1),
	} {
		if _, err := begin().answer([]byte(first)); !errors.Is(err, errSCRAM) {
			t.Errorf("%q: %v", first, err)
		}
	}
	for _, row := range []struct {
		offered         []string
		binding         []byte
		mechanism, head string
	}{
		{[]string{scramBound, scramPlain}, []byte("b"), scramBound, "p=tls-server-end-point,,"},
		{[]string{scramPlain}, []byte("b"), scramPlain, "y,,"},
		{[]string{scramBound, scramPlain}, nil, scramPlain, "n,,"},
		{[]string{"SCRAM-SHA-1", "PLAIN"}, nil, "", ""},
		{nil, nil, "", ""},
	} {
		s, mechanism, err := newSCRAM("x", row.offered, row.binding)
		if mechanism != row.mechanism || (err == nil) != (row.mechanism != "") || s != nil && s.header != row.head {
			t.Errorf("%q: %q %v", row.offered, mechanism, err)
		}
	}
}

// TestFingerprint: statements that differ in values, spelling and comments are one; others are not.
func TestFingerprint(t *testing.T) {
	for _, row := range []struct{ in, want string }{
		{"SELECT 1", "select ?"},
		{"select  2 ; ", "select ?"},
		{"SELECT /* a /* b */ c */ 3 -- d\n", "select ?"},
		{"SELECT 'it''s', E'\\'x', $$a$$, $t$ $$ $t$, B'01', x'ff', 1.5e-3, .5, 0x1F", "select ?"},
		{"SELECT * FROM t WHERE a=1 AND b = 'x'", "select * from t where a = ? and b = ?"},
		{"INSERT INTO t VALUES (1,2), (3, 4)", "insert into t values ( ? ) , ( ? )"},
		{`SELECT "Quoted""Name", a.b, $1, c1`, `select "Quoted""Name" , a . b , $ ? , c1`},
		{"SELECT 'open", "select ?"},
		{"SELECT /* open", "select"},
		{"SELECT $x$ open", "select ?"},
		{"", ""},
		{"'", "?"},
		{"E'\\", "?"},
		{"$", "$"},
	} {
		if got := string(Normalize([]byte(row.in))); got != row.want {
			t.Errorf("%s: %s, want %s", row.in, got, row.want)
		}
	}
	if Fingerprint([]byte("SELECT a FROM t WHERE x = 1")) != Fingerprint([]byte("select a from T where x=2")) || Fingerprint([]byte("SELECT a")) == Fingerprint([]byte("SELECT b")) {
		t.Error("fingerprints")
	}
}

// TestWelcome: a client of a protocol to come is told of the one that is spoken, and one of today's is told nothing.
func TestWelcome(t *testing.T) {
	for _, row := range []struct {
		minor  uint16
		params []Parameter
		newest uint32 // 0: no word of it
	}{
		{0, nil, 0},
		{2, nil, 0},
		{9999, nil, 3<<16 | 2},
		{0, []Parameter{{"_pq_.x", "1"}}, 3 << 16},
	} {
		b := Welcome{Client: Startup{row.minor, row.params}, Status: []Parameter{{"a", "b"}}, Key: Cancel{5, []byte("abcd")}}.Bytes()
		f := pgproto3.NewFrontend(bytes.NewReader(b), io.Discard)
		var kinds []string
		for {
			m, err := f.Receive()
			if err != nil {
				break
			}
			switch m := m.(type) {
			case *pgproto3.NegotiateProtocolVersion:
				kinds = append(kinds, "v")
				if m.NewestMinorProtocol != row.newest || len(m.UnrecognizedOptions) != len(row.params) {
					t.Errorf("%+v", m)
				}
			case *pgproto3.AuthenticationOk:
				kinds = append(kinds, "R")
			case *pgproto3.ParameterStatus:
				kinds = append(kinds, m.Name+m.Value)
			case *pgproto3.BackendKeyData:
				kinds = append(kinds, string(m.SecretKey))
			case *pgproto3.ReadyForQuery:
				kinds = append(kinds, "Z")
			}
		}
		want := "R ab abcd Z"
		if row.newest != 0 {
			want = "v " + want
		}
		if got := strings.Join(kinds, " "); got != want {
			t.Errorf("%+v: %s", row, got)
		}
	}
	if b := (Fatal{Code: "28000", Message: "a\x00b"}).Bytes(); !bytes.Contains(b, []byte("Ma?b\x00")) {
		t.Errorf("%q", b)
	}
}

// FuzzReadFirst: what is read from a client's beginning is what PostgreSQL would read. The oracle is pgproto3's own reader, where
// both accept, and the packet written anew, which has to be the one that was read.
func FuzzReadFirst(f *testing.F) {
	f.Add(packet(3<<16, "user\x00alice\x00database\x00orders\x00\x00"))
	f.Add(packet(3<<16|2, "user\x00alice\x00options\x00-c role=x\x00\x00"))
	f.Add(packet(codeCancel, "\x00\x00\x00\x01abcd"))
	f.Add(packet(codeTLS, ""))
	f.Add(packet(codeGSS, "GET / HTTP/1.1\r\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bytes.NewReader(data)
		first, err := ReadFirst(r)
		if err != nil {
			return
		}
		read := data[:len(data)-r.Len()]
		if n := binary.BigEndian.Uint32(data); int(n) != len(read) {
			t.Fatalf("%d bytes read of a packet of %d", len(read), n)
		}
		var again []byte
		switch first.Kind {
		case KindStartup:
			if again, err = first.Startup.append(nil); err != nil {
				t.Fatal(err)
			}
		case KindCancel:
			again = first.Cancel.Append(nil)
		case KindTLS:
			again = AppendTLSRequest(nil)
		case KindGSS:
			again = packet(codeGSS, "")
		default:
			t.Fatalf("kind %d", first.Kind)
		}
		if !bytes.Equal(again, read) {
			t.Fatalf("read %q, means %q", read, again)
		}
		m, err := pgproto3.NewBackend(bytes.NewReader(data), io.Discard).ReceiveStartupMessage()
		if err != nil {
			return // it knows two versions only, and wants a parameter
		}
		if s, ok := m.(*pgproto3.StartupMessage); ok {
			if len(s.Parameters) != len(first.Startup.Params) {
				t.Fatalf("%q, and pgproto3 reads %q", first.Startup.Params, s.Parameters)
			}
			for _, p := range first.Startup.Params {
				if s.Parameters[p.Name] != p.Value {
					t.Fatalf("%q, and pgproto3 reads %q", p, s.Parameters[p.Name])
				}
			}
		}
	})
}

// FuzzRelay: however the bytes of a client come, what goes on is a prefix of them, ends at the first message that may not
// come, and holds every message that was shown after it was shown. The oracle is a reader that takes one message after
// another out of the whole.
func FuzzRelay(f *testing.F) {
	f.Add(slices.Concat(message('Q', "SELECT 1\x00"), message('X', "")), uint8(3))
	f.Add(slices.Concat(message('P', "\x00SELECT\x00"), message('p', "x")), uint8(1))
	f.Add(message('d', strings.Repeat("x", 300)), uint8(255))
	f.Fuzz(func(t *testing.T, data []byte, step uint8) {
		var want []byte // what may go on
		var shown []string
		rest := data
		bad := false
		for len(rest) >= headLen {
			n := int64(binary.BigEndian.Uint32(rest[1:])) - 4
			size := class(FromClient, rest[0])
			if size == never || n < 0 || n > 1<<16 || size == small && n > smallLimit {
				bad = true
				break
			}
			if n > int64(len(rest)-headLen) {
				break // cut off: how much of it goes on is not said here
			}
			shown = append(shown, string(rest[headLen:headLen+min(int(n), 10)]))
			want = append(want, rest[:headLen+int(n)]...)
			rest = rest[headLen+int(n):]
		}
		var out bytes.Buffer
		var seen []string
		r := Relay{
			From: FromClient, Max: 1 << 16,
			Peek: func(byte) int { return 10 },
			Seen: func(m Message) error { seen = append(seen, string(m.Prefix)); return nil },
			Pass: func(b []byte, whole bool) error {
				out.Write(b)
				if whole && !bytes.HasPrefix(want, out.Bytes()) {
					t.Fatalf("%q goes on of %q", out.Bytes(), want)
				}
				return nil
			},
		}
		err := r.Run(&steps{data, int(step) + 1})
		if bad != errors.Is(err, ErrFrame) || !bytes.HasPrefix(data, out.Bytes()) || !bytes.HasPrefix(out.Bytes(), want) {
			t.Fatalf("%v: %q goes on, want %q", err, out.Bytes(), want)
		}
		if bad && out.Len() != len(want) {
			t.Fatalf("%q goes on after the end", out.Bytes()[len(want):])
		}
		if len(seen) < len(shown) || !slices.Equal(seen[:len(shown)], shown) {
			t.Fatalf("shown %q, want %q", seen, shown)
		}
	})
}

// steps reads n bytes at a time.
type steps struct {
	b []byte
	n int
}

func (s *steps) Read(p []byte) (int, error) {
	if len(s.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), s.n)], s.b)
	s.b = s.b[n:]
	return n, nil
}

// TestValidPassword: what SASLprep would change is refused.
func TestValidPassword(t *testing.T) {
	for _, row := range []struct {
		in string
		ok bool
	}{{"x", true}, {rand.Text(), true}, {` !"~\:`, true}, {"", false}, {"a\x00b", false}, {"a\tb", false}, {"pä", false}, {strings.Repeat("x", 1001), false}} {
		if ValidPassword(row.in) != row.ok {
			t.Errorf("%q", row.in)
		}
	}
}

// TestPinned: a server that asks otherwise than was agreed, or does not ask, gets neither the password nor a session.
func TestPinned(t *testing.T) {
	const secret = "the password"
	for _, row := range []struct {
		name string
		auth Auth
		says []pgproto3.BackendMessage
		ok   bool
	}{
		{"nothing asked", AuthSCRAM, nil, false},
		{"nothing asked, where a password is due", AuthCleartext, nil, false},
		{"nothing asked, nothing due", AuthNone, nil, true},
		{"in the clear", AuthSCRAM, []pgproto3.BackendMessage{&pgproto3.AuthenticationCleartextPassword{}}, false},
		{"in the clear, as agreed", AuthCleartext, []pgproto3.BackendMessage{&pgproto3.AuthenticationCleartextPassword{}}, true},
		{"twice", AuthCleartext, []pgproto3.BackendMessage{&pgproto3.AuthenticationCleartextPassword{}, &pgproto3.AuthenticationCleartextPassword{}}, false},
		{"MD5", AuthCleartext, []pgproto3.BackendMessage{&pgproto3.AuthenticationMD5Password{}}, false},
		{"a password, where none is due", AuthNone, []pgproto3.BackendMessage{&pgproto3.AuthenticationCleartextPassword{}}, false},
		{"half of SCRAM", AuthSCRAM, []pgproto3.BackendMessage{&pgproto3.AuthenticationSASL{AuthMechanisms: []string{scramPlain}}}, false},
		{"the end of SCRAM alone", AuthSCRAM, []pgproto3.BackendMessage{&pgproto3.AuthenticationSASLFinal{Data: []byte("v=")}}, false},
	} {
		client, server := net.Pipe()
		heard := make(chan string, 1)
		go func() {
			var said bytes.Buffer
			go func() {
				var b []byte
				for _, m := range row.says {
					b = encode(b, m)
				}
				b = encode(encode(b, &pgproto3.AuthenticationOk{}), &pgproto3.ReadyForQuery{TxStatus: 'I'})
				_, _ = server.Write(b) // the client may have had enough
			}()
			_, _ = io.Copy(&said, server)
			heard <- said.String()
		}()
		s, err := Login(t.Context(), Target{Dial: func(context.Context) (net.Conn, error) { return client, nil }}, Startup{Params: []Parameter{{"user", "u"}}}, Credentials{row.auth, secret})
		if (err == nil) != row.ok || err != nil && s != nil {
			t.Errorf("%s: %v", row.name, err)
		}
		_ = client.Close()
		if said := <-heard; strings.Contains(said, secret) != (row.auth == AuthCleartext && len(row.says) > 0 && !strings.Contains(row.name, "MD5")) {
			t.Errorf("%s: the server heard %q", row.name, said)
		}
	}
}

// FuzzNormalize: no value shows. A statement is the same whatever its last constant holds, in every form that a
// constant or a comment can have; and what was made the same stays so.
func FuzzNormalize(f *testing.F) {
	f.Add("SELECT a FROM t WHERE id IN (1, 'x', $1) AND b =", "secret")
	f.Add(`INSERT INTO "T x" VALUES (e'\'', b'01',`, "12")
	f.Add("/* a /* b */ c */ select 1.5e+3 -- end\n,", "a b")
	f.Fuzz(func(t *testing.T, statement, secret string) {
		n := string(Normalize([]byte(statement)))
		if again := Normalize([]byte(n)); string(again) != n {
			t.Fatalf("%q is made %q, and that %q", statement, n, again)
		}
		if strings.Contains(n, `"`) {
			return // a name that may have no end
		}
		want := string(Normalize([]byte(n + " 'x'")))
		text := []string{"'" + strings.ReplaceAll(secret, "'", "''") + "'", "E'" + strings.NewReplacer("'", `\'`, `\`, `\\`).Replace(secret) + "'"}
		if !strings.Contains(secret, "$") {
			text = append(text, "$$"+secret+"$$", "$a$"+secret+"$a$")
		}
		if !strings.ContainsAny(secret, "*/") {
			text = append(text, "/* "+secret+" */ 'x'", "'x' /* "+secret+" */")
		}
		if !strings.Contains(secret, "\n") {
			text = append(text, "--"+secret+"\n'x'")
		}
		for _, text := range text {
			if got := string(Normalize([]byte(n + " " + text))); got != want {
				t.Fatalf("%q: %q, and with an x in its place %q", n+" "+text, got, want)
			}
		}
	})
}

// overheard is a connection to a server that says its piece whatever it hears.
type overheard struct {
	net.Conn
	heard bytes.Buffer
}

func (o *overheard) Write(p []byte) (int, error) { return o.heard.Write(p) }

// FuzzLogin: a server that does not know the password, whatever it says, hears it only where it was agreed to be sent in the
// clear, and gives nobody a session where a proof was agreed. The oracle is what was written to it.
func FuzzLogin(f *testing.F) {
	const secret = "the password"
	for _, says := range [][]pgproto3.BackendMessage{
		{&pgproto3.AuthenticationOk{}, &pgproto3.ParameterStatus{Name: "a", Value: "b"}, &pgproto3.BackendKeyData{ProcessID: 1, SecretKey: []byte("abcd")}, &pgproto3.ReadyForQuery{TxStatus: 'I'}},
		{&pgproto3.AuthenticationSASL{AuthMechanisms: []string{scramPlain}}, &pgproto3.AuthenticationSASLFinal{Data: []byte("v=")}, &pgproto3.AuthenticationOk{}},
		{&pgproto3.AuthenticationMD5Password{}, &pgproto3.NoticeResponse{Message: "x"}, &pgproto3.ErrorResponse{Code: "28000"}},
	} {
		var b []byte
		for _, m := range says {
			b = encode(b, m)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, says []byte) {
		for _, auth := range []Auth{AuthSCRAM, AuthCleartext, AuthNone} {
			conn := &overheard{}
			s := Server{Conn: conn, R: bufio.NewReader(bytes.NewReader(says))}
			err := s.login(Startup{Params: []Parameter{{"user", "u"}}}, Credentials{auth, secret})
			sent := bytes.Count(conn.heard.Bytes(), []byte(secret))
			switch {
			case auth != AuthCleartext && sent > 0, sent > 1:
				t.Fatalf("auth %d: %q draws %q", auth, says, conn.heard.Bytes())
			case err == nil && (auth == AuthSCRAM || auth == AuthCleartext && sent == 0):
				t.Fatalf("auth %d: %q begins a session", auth, says)
			case err == nil && len(s.Key.Secret) > maxSecret:
				t.Fatalf("a key of %d bytes", len(s.Key.Secret))
			}
		}
	})
}
