package pgwire

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
)

// Auth is the one way in which a server may ask who logs in.
type Auth uint8

// The ways. The zero Auth is invalid.
const (
	AuthSCRAM     Auth = iota + 1 // SCRAM-SHA-256, in which the server proves that it knows the password
	AuthCleartext                 // the password itself, for servers that ask PAM, LDAP or a token service
	AuthNone                      // nothing on this level: a certificate in TLS, or the peer of a Unix socket
)

// Target is a server, and how it is spoken to.
type Target struct {
	Dial func(ctx context.Context) (net.Conn, error)
	TLS  *tls.Config // nil: none
}

// Credentials are what a role logs in with.
type Credentials struct {
	Auth     Auth
	Password string // of AuthSCRAM and AuthCleartext
}

// Server is a session at a server, from the moment when it waits for the first statement.
type Server struct {
	Conn   net.Conn
	R      *bufio.Reader // of Conn: what is read goes through it
	Status []Parameter   // what the server told of itself, in its order
	Key    Cancel
}

// ErrLogin is returned when a server does not let a role in, or not in the way that was pinned.
var ErrLogin = errors.New("login failed")

// ServerError is what a server answers with an ErrorResponse.
type ServerError struct{ Code, Message string }

func (e *ServerError) Error() string { return e.Code + ": " + e.Message }

const (
	maxLoginMessage  = 64 << 10
	maxLoginMessages = 500
	maxPassword      = 1000
)

// Login begins a session with the parameters of s, which name the user. It ends with ctx.
func Login(ctx context.Context, t Target, s Startup, cred Credentials) (*Server, error) {
	conn, err := t.connect(ctx)
	if err != nil {
		return nil, err
	}
	server := &Server{Conn: conn, R: bufio.NewReaderSize(conn, relayBuffer)}
	release := bound(ctx, conn)
	err = server.login(s, cred)
	if rerr := release(); err == nil {
		err = rerr
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return server, nil
}

// SendCancel asks the server to cancel what the session of key does, and waits for it to have read that.
func (t Target) SendCancel(ctx context.Context, key Cancel) error {
	conn, err := t.connect(ctx)
	if err != nil {
		return err
	}
	release := bound(ctx, conn)
	_, err = conn.Write(key.Append(nil))
	if err == nil {
		if _, rerr := conn.Read(make([]byte, 1)); rerr != nil && !errors.Is(rerr, io.EOF) {
			err = rerr // it says nothing and closes when it is done
		}
	}
	return errors.Join(err, release(), conn.Close())
}

// bound makes what waits for conn end with ctx. The function that it returns undoes that.
func bound(ctx context.Context, conn net.Conn) func() error {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) }) // one that fails is closed already
	return func() error {
		if !stop() {
			return ctx.Err()
		}
		return nil
	}
}

// connect dials, and begins TLS where it is to be.
func (t Target) connect(ctx context.Context) (net.Conn, error) {
	conn, err := t.Dial(ctx)
	if err != nil || t.TLS == nil {
		return conn, err
	}
	release := bound(ctx, conn)
	tc, err := startTLS(ctx, conn, t.TLS)
	if rerr := release(); err == nil {
		err = rerr
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return tc, nil
}

func startTLS(ctx context.Context, conn net.Conn, cfg *tls.Config) (*tls.Conn, error) {
	if _, err := conn.Write(AppendTLSRequest(nil)); err != nil {
		return nil, err
	}
	var answer [1]byte
	if _, err := io.ReadFull(conn, answer[:]); err != nil {
		return nil, noEOF(err)
	}
	// Whoever sits between can say N. There is no going on without.
	if answer[0] != 'S' {
		return nil, fmt.Errorf("%w: the server does not offer TLS", ErrLogin)
	}
	tc := tls.Client(conn, cfg)
	return tc, tc.HandshakeContext(ctx)
}

// login runs the start-up phase.
func (s *Server) login(start Startup, cred Credentials) error {
	packet, err := start.append(nil)
	if err != nil {
		return err
	}
	if _, err := s.Conn.Write(packet); err != nil {
		return err
	}
	a := authentication{s: s, cred: cred}
	if err := a.run(); err != nil {
		return err
	}
	for range maxLoginMessages {
		kind, body, err := readMessage(s.R, maxLoginMessage)
		if err != nil {
			return err
		}
		switch kind {
		case 'S':
			var p pgproto3.ParameterStatus
			if err := p.Decode(body); err != nil {
				return err
			}
			s.Status = append(s.Status, Parameter{p.Name, p.Value})
		case 'K':
			if len(body) < 8 || len(body) > 4+maxSecret {
				return fmt.Errorf("%w: a cancel key of %d bytes", errMessage, len(body))
			}
			s.Key = Cancel{binary.BigEndian.Uint32(body), body[4:]}
		case 'N':
		case 'Z':
			return nil
		case 'E':
			return serverError(body)
		default:
			return fmt.Errorf("%w: %q after the login", errMessage, kind)
		}
	}
	return fmt.Errorf("%w: over %d messages", ErrLogin, maxLoginMessages)
}

// authentication answers a server's questions of who logs in.
type authentication struct {
	s     *Server
	cred  Credentials
	scram *scram
	done  bool // the pinned way was gone to its end
}

func (a *authentication) run() error {
	a.done = a.cred.Auth == AuthNone
	for range maxLoginMessages {
		kind, body, err := readMessage(a.s.R, maxLoginMessage)
		switch {
		case err != nil:
			return err
		case kind == 'E':
			return serverError(body)
		case kind == 'N', kind == 'v': // a notice; a version, of which we ask for the oldest
			continue
		case kind != 'R' || len(body) < 4:
			return fmt.Errorf("%w: %q before the login", errMessage, kind)
		}
		method := binary.BigEndian.Uint32(body)
		if method == pgproto3.AuthTypeOk {
			// Whoever sits between, or answers in place of the server, would say so to be given a session without
			// having proven anything.
			if !a.done {
				return fmt.Errorf("%w: the server did not ask for the password as it should", ErrLogin)
			}
			return nil
		}
		if err := a.step(method, body[4:]); err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: over %d messages", ErrLogin, maxLoginMessages)
}

func (a *authentication) step(method uint32, body []byte) error {
	switch {
	case a.cred.Auth == AuthCleartext && method == pgproto3.AuthTypeCleartextPassword && !a.done:
		a.done = true
		return a.send(&pgproto3.PasswordMessage{Password: a.cred.Password})
	case a.cred.Auth == AuthSCRAM && method == pgproto3.AuthTypeSASL && a.scram == nil:
		var m pgproto3.AuthenticationSASL
		if err := m.Decode(append(binary.BigEndian.AppendUint32(nil, method), body...)); err != nil {
			return err
		}
		s, mechanism, err := newSCRAM(a.cred.Password, m.AuthMechanisms, a.s.binding())
		if err != nil {
			return err
		}
		a.scram = s
		return a.send(&pgproto3.SASLInitialResponse{AuthMechanism: mechanism, Data: s.begin()})
	case a.scram != nil && method == pgproto3.AuthTypeSASLContinue && a.scram.signature == nil:
		answer, err := a.scram.answer(body)
		if err != nil {
			return err
		}
		return a.send(&pgproto3.SASLResponse{Data: answer})
	case a.scram != nil && method == pgproto3.AuthTypeSASLFinal && !a.done:
		if err := a.scram.finish(body); err != nil {
			return err
		}
		a.done = true
		return nil
	default:
		return fmt.Errorf("%w: the server asks for %s, which is not what was configured", ErrLogin, methodName(method))
	}
}

func (a *authentication) send(m pgproto3.FrontendMessage) error {
	_, err := a.s.Conn.Write(encode(nil, m))
	return err
}

func methodName(method uint32) string {
	switch method {
	case pgproto3.AuthTypeCleartextPassword:
		return "the password in clear text"
	case pgproto3.AuthTypeMD5Password:
		return "MD5"
	case pgproto3.AuthTypeSASL, pgproto3.AuthTypeSASLContinue, pgproto3.AuthTypeSASLFinal:
		return "SCRAM"
	default:
		return fmt.Sprintf("authentication of type %d", method)
	}
}

// binding is the server's end of the TLS channel, or nil.
func (s *Server) binding() []byte {
	tc, ok := s.Conn.(*tls.Conn)
	if !ok {
		return nil
	}
	if certs := tc.ConnectionState().PeerCertificates; len(certs) > 0 {
		return endPoint(certs[0])
	}
	return nil
}

func serverError(body []byte) error {
	var e pgproto3.ErrorResponse
	if err := e.Decode(body); err != nil {
		return fmt.Errorf("%w: %w", errMessage, err)
	}
	return fmt.Errorf("%w: %w", ErrLogin, &ServerError{e.Code, e.Message})
}

// Query runs statements in the simple protocol and returns the rows of text of all of them; NULL is "". It is for what the
// proxy itself asks, before and beside a client's session.
func (s *Server) Query(ctx context.Context, sql string) ([][]string, error) {
	release := bound(ctx, s.Conn)
	rows, err := s.query(sql)
	if rerr := release(); err == nil {
		err = rerr
	}
	return rows, err
}

func (s *Server) query(sql string) (rows [][]string, failed error) {
	if _, err := s.Conn.Write(encode(nil, &pgproto3.Query{String: sql})); err != nil {
		return nil, err
	}
	const most = 10000
	for range most {
		kind, body, err := readMessage(s.R, maxLoginMessage)
		if err != nil {
			return nil, err
		}
		switch kind {
		case 'D':
			var row pgproto3.DataRow
			if err := row.Decode(body); err != nil {
				return nil, err
			}
			var values []string
			for _, v := range row.Values {
				values = append(values, string(v))
			}
			rows = append(rows, values)
		case 'E':
			failed = serverError(body)
		case 'Z':
			return rows, failed
		case 'T', 'C', 'N', 'S', 'A', 'I':
		default:
			return nil, fmt.Errorf("%w: %q in an answer", errMessage, kind)
		}
	}
	return nil, fmt.Errorf("%w: over %d messages", errMessage, most)
}

// ValidPassword says whether a password is one that Login can send: printable ASCII, of which SASLprep (RFC 4013) makes
// nothing else.
func ValidPassword(password string) bool {
	return password != "" && len(password) <= maxPassword && strings.Trim(password, printable) == ""
}

const printable = ` !"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\]^_` + "`abcdefghijklmnopqrstuvwxyz{|}~"
