package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgproto3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

var update = flag.Bool("update", false, "write the generated part of docs/proxy.md anew")

// The two lines of docs/proxy.md between which TestMatrix writes.
const (
	matrixBegin = "<!-- matrix: written by go test ./proxy -run TestMatrix -update -->\n"
	matrixEnd   = "<!-- matrix end -->\n"
)

// matrixRow is a protocol. A protocol that the proxy learns gets a row here and is
// then asked everything that the others are.
type matrixRow struct {
	name, upstream string
	perm, other    string // one that opens it, and one of the same kind that does not
	edit           func(*Settings)
	open           aLiveOne                           // something that would last for ever
	once           func(*env, tls.Certificate) string // one whole exchange, and in words what came of it
	carried        aCarriedOne                        // what open opens, by way of connect
}

func matrixRows(t *testing.T) []matrixRow {
	web, ws, rpc, tcp, pg := upstreamServer(t, drip), wsUpstream(t), echoGRPC(t), "tcp://"+tcpEcho(t), startFakePG(t).upstream()
	return []matrixRow{
		{"HTTP/1.1", web, "* /**", "* /other", nil, download(false), onceHTTP(false), carriedHTTP(false)},
		{"HTTP/2", web, "* /**", "* /other", nil, download(true), onceHTTP(true), carriedHTTP(true)},
		{"gRPC", rpc, "grpc a.B/*", "grpc a.C/*", nil, liveGRPC, onceGRPC, carriedGRPC},
		{"WebSocket", ws, "GET /ws", "GET /other", nil, liveWebSocket, onceWebSocket, carriedWebSocket},
		{"TCP", tcp, "tcp", "GET /**", tcpService, liveTCP, onceTCP, carriedTCP},
		{"Postgres", pg, readonlyOfOrders, "postgres orders as admin", postgresService, livePostgres, oncePostgres, carriedPostgres},
	}
}

func onceHTTP(h2 bool) func(*env, tls.Certificate) string {
	return func(e *env, cert tls.Certificate) string {
		a, err := e.do(e.client(cert, h2), "PUT", "/drip")
		if err != nil {
			return refusedText(err)
		}
		return fmt.Sprint(a.status)
	}
}

func onceGRPC(e *env, cert tls.Certificate) string {
	ctx, cancel := context.WithTimeout(e.t.Context(), patience)
	defer cancel()
	in, out := []byte("x"), []byte(nil)
	switch err := e.grpcConn(cert).Invoke(ctx, "/a.B/Get", &in, &out); {
	case err == nil && string(out) == "x":
		return "grpc-status 0"
	case status.Code(err) == codes.Unavailable:
		return refusedText(err)
	default:
		return fmt.Sprintf("grpc-status %d", status.Code(err))
	}
}

func onceWebSocket(e *env, cert tls.Certificate) string {
	ctx, cancel := context.WithTimeout(e.t.Context(), patience)
	defer cancel()
	c, res, err := e.websocket(ctx, cert, "/ws") //nolint:bodyclose // websocket.Dial has read it, or the connection is it
	switch {
	case err != nil && res != nil:
		return fmt.Sprint(res.StatusCode)
	case err != nil:
		return refusedText(err)
	}
	defer func() { _ = c.CloseNow() }()
	if err := c.Write(ctx, websocket.MessageText, []byte("x")); err != nil {
		return err.Error()
	}
	if _, got, err := c.Read(ctx); err != nil || string(got) != "x" {
		return fmt.Sprintf("101, then %q, %v", got, err)
	}
	return "101, frames both ways"
}

func onceTCP(e *env, cert tls.Certificate) string {
	c := e.dial(cert)
	defer func() { _ = c.Close() }()
	_, werr := io.WriteString(c, "x")
	got := make([]byte, 1)
	switch n, rerr := io.ReadFull(c, got); {
	case rerr == nil && string(got) == "x":
		return "bytes both ways"
	case n == 0 && errors.Is(rerr, io.EOF) && werr == nil:
		return "closed without a byte"
	default:
		return refusedText(rerr)
	}
}

func oncePostgres(e *env, cert tls.Certificate) string {
	c, refused := e.open(cert, "user", "readonly", "database", "orders")
	defer func() { _ = c.conn.Close() }()
	switch {
	case refused != nil && refused.Severity == "FATAL":
		return "`FATAL` " + refused.Code
	case refused != nil:
		return refusedText(errors.New(refused.Message))
	}
	if err := c.talk(); err != nil {
		return err.Error()
	}
	c.send(&pgproto3.Terminate{})
	return "a session, and answers in it"
}

// refusedText is how a TLS client is told that its certificate is not wanted. In TLS 1.3 the alert comes behind the
// client's side of the handshake, and a client that has begun to write by then may see nothing but that it cannot.
func refusedText(err error) string {
	for _, words := range []string{
		"tls: bad certificate", "remote error: tls: ", "client conn could not be established", "connection reset by peer", "broken pipe", "server preface",
	} {
		if strings.Contains(err.Error(), words) {
			return "TLS alert"
		}
	}
	return err.Error()
}

// matrixColumns are what may befall each.
func matrixColumns() []matrixColumn {
	return []matrixColumn{
		{"in scope", false, cellAdmit},
		{"out of scope", false, cellScope},
		{"expiry while it runs", false, cellExpiry},
		{"revoked while it runs", false, cellRevoke},
		{"renewed while it runs", false, cellRenew},
		{"renewed through `connect`", true, cellConnect},
		{"control plane dead", true, cellDead},
	}
}

type matrixColumn struct {
	name string
	own  bool // it needs a proxy of its own: it moves the clock, or ends the control node
	// begin starts an experiment. What it returns waits for its end and says in
	// words what was observed: all of them run at once, so that all that must wait
	// for a NotAfter wait together.
	begin func(*testing.T, *matrixProxy, matrixRow) (observe func(*env) string)
}

// TestMatrix has every protocol meet everything that can befall it, and docs/proxy.md
// say what was observed, no more and no less.
func TestMatrix(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	lag := &stalls{}
	go lag.watch(ctx)
	rows, columns := matrixRows(t), matrixColumns()
	type experiment struct {
		e       *env
		observe func(*env) string
	}
	running := make([][]experiment, len(rows))
	for i, row := range rows {
		m := newMatrixProxy(t, lag, row)
		for _, col := range columns {
			of := m
			if col.own {
				of = newMatrixProxy(t, lag, row)
			}
			running[i] = append(running[i], experiment{of.env, col.begin(t, of, row)})
		}
	}
	var table strings.Builder
	table.WriteString("| |")
	for _, col := range columns {
		table.WriteString(" " + col.name + " |")
	}
	table.WriteString("\n|---" + strings.Repeat("|---", len(columns)) + "|\n")
	for i, row := range rows {
		fmt.Fprintf(&table, "| %s |", row.name)
		for j, col := range columns {
			t.Run(row.name+"/"+col.name, func(t *testing.T) {
				observed := running[i][j].observe(running[i][j].e.with(t))
				t.Log(observed)
				fmt.Fprintf(&table, " %s |", observed)
			})
		}
		table.WriteString("\n")
	}
	if t.Failed() {
		return // what was observed is not whole
	}
	compareSection(t, "../docs/proxy.md", matrixBegin, matrixEnd, table.String())
}

// compareSection compares the part of a page between two lines with text, or writes it there.
func compareSection(t *testing.T, path, begin, end, text string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(data), begin)
	was, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no %q … %q", path, begin, end)
	}
	if was == text {
		return
	}
	if !*update {
		t.Errorf("%s says otherwise than was observed (-page +observed):\n%s", path, cmp.Diff(was, text))
		return
	}
	if err := os.WriteFile(path, []byte(before+begin+text+end+after), 0o644); err != nil {
		t.Fatal(err)
	}
}

// matrixProxy is a running proxy that follows a control node.
type matrixProxy struct {
	*env
	node *controlNode
	lag  *stalls
}

func newMatrixProxy(t *testing.T, lag *stalls, row matrixRow) *matrixProxy {
	t.Helper()
	p := newPKI(t)
	node := startControl(t, p, nodeOne, feedDoc{Epoch: 1, Revision: 1, VerifiedAt: time.Now()})
	e := start(t, options{pki: p, upstream: row.upstream, edit: func(s *Settings) {
		withFeed(node.url)(s)
		if row.edit != nil {
			row.edit(s)
		}
	}})
	e.eventually("feed", func() bool { return e.px.rev.cur.Load().epoch == 1 })
	return &matrixProxy{e, node, lag}
}

// brokenOff is how something live ended.
type brokenOff struct {
	at  time.Time
	err error
}

// run opens what would last for ever.
func (m *matrixProxy) run(row matrixRow, cert tls.Certificate) <-chan brokenOff {
	ended := make(chan brokenOff, 1)
	broken := row.open(m.env, cert)
	go func() { // ends with the proxy at the latest
		err := broken()
		ended <- brokenOff{time.Now(), err}
	}()
	return ended
}

// end waits for the end of a live one, which must come within a second of due and
// not look like a good one, and says so.
func (m *matrixProxy) end(e *env, ended <-chan brokenOff, due time.Time, grantID, reason, of string) string {
	select {
	case end := <-ended:
		switch over := end.at.Sub(due); {
		case end.err == nil, end.err == errWhole, errors.Is(end.err, io.EOF) && !errors.Is(end.err, io.ErrUnexpectedEOF): //nolint:errorlint // errWhole is a marker, never wrapped
			return fmt.Sprintf("ended as if whole (%v)", end.err)
		case over < 0:
			return fmt.Sprintf("broken off early (%s before %s: %v)", -over, of, end.err)
		case over > time.Second+m.lag.most():
			return fmt.Sprintf("broken off late (%s after %s)", over, of)
		}
	case <-time.After(2 * patience):
		return "still open"
	}
	e.record("the cut", func(r logLine) bool { return r.Event == "end" && r.Grant == grantID && r.Reason == reason })
	return "broken off ≤ 1 s after " + of + ", `" + reason + "`"
}
