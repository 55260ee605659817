package proxy

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/hallpass/hallpass/proxy/pgwire"
)

var (
	// errTerminate is returned when the client said that it is done.
	errTerminate = errors.New("the client is done")
	// errChanged is returned when a session says that it is another role's now.
	errChanged = errors.New("the session became another role's")
	// errToServer is returned when the database takes no more bytes.
	errToServer = errors.New("the database takes no more")
	// errToClient is returned when the client takes no more bytes.
	errToClient = errors.New("the client takes no more")
)

const (
	maxStatementName = 1024 // bytes of a prepared statement's name, where statements are recorded
	maxStatusPeek    = 512
)

// pgEnding is how a session's first half ended.
type pgEnding struct {
	client bool // it was the client's
	err    error
}

// relay carries messages both ways until either side has ended, and returns why it ended, "" when it simply did.
func (s *pgSession) relay() string {
	up := make(chan struct{})
	go func() {
		defer close(up)
		s.first.CompareAndSwap(nil, &pgEnding{true, s.fromClient()})
		_ = s.server.Conn.SetReadDeadline(longAgo()) // ends the other half; a socket that is gone has ended it
	}()
	down := s.fromServer()
	s.serverGone = !errors.Is(down, os.ErrDeadlineExceeded) && !errors.Is(down, errToClient) && !errors.Is(down, errChanged) && !errors.Is(down, errCut)
	s.first.CompareAndSwap(nil, &pgEnding{false, down})
	_ = s.client.SetReadDeadline(longAgo())       // as above, the other way round
	_ = s.server.Conn.SetWriteDeadline(longAgo()) // and for a client's half that waits for a backend that reads no more
	<-up
	close(s.relayed)
	_ = s.server.Conn.SetDeadline(time.Time{}) // reap has its own
	why, fatal := s.verdict(*s.first.Load())
	if fatal != nil {
		s.farewell(*fatal)
	}
	if !s.isWhole() {
		s.c.reset() // half an answer must not look like a whole one
	}
	return why
}

// verdict says why a session ended, and what to tell a client that has not been told by the database.
func (s *pgSession) verdict(e pgEnding) (why string, fatal *pgwire.Fatal) {
	switch err := e.err; {
	case s.c.cutReason() != "":
		return s.c.cutReason(), nil // part tells it
	case errors.Is(err, errTerminate), err == nil && !e.client:
		return "", nil
	case errors.Is(err, errLogUnavailable):
		f := unrecorded()
		return reasonLogUnavailable, &f
	case errors.Is(err, errChanged):
		return reasonRoleChanged, &pgwire.Fatal{Code: pgwire.CodeAdminShutdown, Message: "hallpass: the session became another role's"}
	case errors.Is(err, pgwire.ErrFrame) && e.client:
		return reasonProtocol, &pgwire.Fatal{Code: pgwire.CodeProtocolViolation, Message: "hallpass: " + err.Error()}
	case errors.Is(err, errToServer), !e.client && !errors.Is(err, errToClient):
		return reasonUpstreamBroke, &pgwire.Fatal{Code: pgwire.CodeCannotConnect, Message: "hallpass: the database broke off"}
	default:
		return reasonClientGone, nil
	}
}

// fromClient passes on what the client says. It ends with errTerminate where the client says that it is done, and with nil
// where it leaves without a word.
func (s *pgSession) fromClient() error {
	r := pgwire.Relay{
		From: pgwire.FromClient, Max: s.p.cfg.pg.maxMessage, Peek: s.peekClient, Seen: s.seenClient,
		Pass: func(b []byte, whole bool) error {
			if s.cutting.Load() {
				return errCut
			}
			n, err := s.server.Conn.Write(b)
			s.in.Add(int64(n))
			s.upWhole = whole && err == nil
			if err != nil {
				return fmt.Errorf("%w: %w", errToServer, err)
			}
			return nil
		},
	}
	return r.Run(s.client)
}

// peekClient says how much of a message seenClient wants to see.
func (s *pgSession) peekClient(kind byte) int {
	switch kind {
	case 'X', 'E':
		return 0
	case 'F':
		return 4
	case 'Q':
		return s.p.cfg.pg.queryBytes
	case 'P':
		if s.p.cfg.pg.queries == queryLogOff {
			return -1
		}
		return maxStatementName + 1 + s.p.cfg.pg.queryBytes
	default:
		return -1
	}
}

// seenClient counts statements and records them, before the database sees a byte of them.
func (s *pgSession) seenClient(m pgwire.Message) error {
	switch m.Type {
	case 'X':
		return errTerminate
	case 'E':
		s.statements++
		return nil
	case 'Q', 'F':
		s.statements++
	}
	if s.p.cfg.pg.queries == queryLogOff {
		return nil
	}
	r := record{
		time: s.p.cfg.now(), kind: kindQuery, event: "end", conn: s.c.id, service: s.p.cfg.service, permission: s.rec.permission,
		decision: decisionAllow, protocol: "postgres", peer: s.c.peer, trace: s.rec.trace,
		database: s.db, role: s.role, queryBytes: m.Length,
	}
	r.of(s.c.proven())
	var text []byte
	switch m.Type {
	case 'Q':
		r.method, text = "query", pgwire.Text(m.Prefix)
	case 'P':
		// A name as long as all that is looked at would keep the statement out of the record.
		if len(pgwire.Text(m.Prefix)) > maxStatementName {
			return fmt.Errorf("%w: a statement's name of over %d bytes", pgwire.ErrFrame, maxStatementName)
		}
		r.method, text = "parse", pgwire.ParseText(m.Prefix)
	case 'F':
		r.method = "call"
		if len(m.Prefix) == 4 {
			text = strconv.AppendUint([]byte("function "), uint64(binary.BigEndian.Uint32(m.Prefix)), 10)
		}
	}
	text = text[:min(len(text), s.p.cfg.pg.queryBytes)]
	if r.fingerprint = pgwire.Fingerprint(text); s.p.cfg.pg.queries == queryLogText {
		r.query = string(text)
	}
	return s.p.access.write(&r)
}

// fromServer passes on what the database says.
func (s *pgSession) fromServer() error {
	r := pgwire.Relay{
		From: pgwire.FromServer,
		Peek: func(kind byte) int {
			if kind == 'S' {
				return maxStatusPeek
			}
			return -1
		},
		Seen: s.seenServer,
		Pass: s.write,
	}
	return r.Run(s.server.R)
}

// seenServer looks at what the database says of the session. What keeps it one role's is that its login is that
// role's, which has no other to become; that this is so shows here as well.
func (s *pgSession) seenServer(m pgwire.Message) error {
	name, value, _ := bytes.Cut(m.Prefix, []byte{0})
	value = pgwire.Text(value)
	switch string(name) {
	case "session_authorization":
		if string(value) != s.role {
			return errChanged
		}
	case "is_superuser":
		if string(value) != "off" {
			return errChanged
		}
	}
	return nil
}

// write writes to the client; whole says whether b ends where a message ends.
func (s *pgSession) write(b []byte, whole bool) error {
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	if s.over {
		return errCut
	}
	n, err := s.client.Write(b)
	s.out.Add(int64(n))
	s.whole = whole && err == nil
	if err != nil {
		return fmt.Errorf("%w: %w", errToClient, err)
	}
	return nil
}

func (s *pgSession) isWhole() bool {
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	return s.whole
}

// partingWord is how long a client may take to take the last word.
const partingWord = partingTime / 2

// farewell is the last thing that the client is told, if it has room for it and is not in the middle of a message.
func (s *pgSession) farewell(f pgwire.Fatal) {
	late := time.NewTimer(partingWord)
	defer late.Stop()
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-late.C:
		return
	}
	if s.over || !s.whole || s.client.SetWriteDeadline(time.Now().Add(partingWord)) != nil {
		s.over = true
		return
	}
	s.over = true
	n, err := s.client.Write(f.Bytes())
	s.out.Add(int64(n))
	if hc, ok := s.client.(halfCloser); ok && err == nil {
		_ = hc.CloseWrite() // it is broken off in a moment
	}
}

// part is called when the connection is cut: from now on nothing passes, either way, and the client is told why.
func (s *pgSession) part(why string) {
	s.cutting.Store(true)
	_ = s.server.Conn.SetDeadline(longAgo()) // ends both halves; a socket that is gone has ended them
	s.farewell(parting(why))
	// It would be lost with the socket, which is reset in a moment: wait for the client to have read it and gone.
	late := time.NewTimer(partingTime)
	defer late.Stop()
	select {
	case <-s.relayed:
	case <-late.C:
		return
	}
	if s.client.SetReadDeadline(time.Now().Add(partingTime)) == nil {
		_, _ = io.Copy(io.Discard, s.client) // how it goes is all the same
	}
}

// parting says in the client's words why its session is at its end.
func parting(why string) pgwire.Fatal {
	f := pgwire.Fatal{Code: pgwire.CodeAdminShutdown, Message: "hallpass: terminating connection: "}
	switch why {
	case reasonExpired:
		f.Message += "the grant certificate has expired"
		f.Hint = "connect again with a renewed certificate, while the grant lives"
	case reasonRevoked:
		f.Message += "the grant was revoked"
	case reasonShutdown:
		f.Message += "the proxy is stopping"
	default:
		f.Message += "the grant is no longer admitted"
		f.Detail = why
	}
	return f
}
