package pgwire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/jackc/pgx/v5/pgproto3"
)

// SQLSTATE codes (PostgreSQL, Appendix A).
const (
	CodeProtocolViolation    = "08P01"
	CodeCannotConnect        = "08004"
	CodeNotSupported         = "0A000"
	CodeInvalidAuthorization = "28000"
	CodeTooManyConnections   = "53300"
	CodeAdminShutdown        = "57P01"
	CodeCannotConnectNow     = "57P03"
	CodeSystemError          = "58000"
)

// Fatal is an ErrorResponse that ends a session, as bytes. Empty fields are left out.
type Fatal struct{ Code, Message, Detail, Hint string }

// Bytes is the message; no field of it can hold a NUL, which ends one.
func (f Fatal) Bytes() []byte {
	e := pgproto3.ErrorResponse{
		Severity: "FATAL", SeverityUnlocalized: "FATAL",
		Code: f.Code, Message: noNUL(f.Message), Detail: noNUL(f.Detail), Hint: noNUL(f.Hint),
	}
	return encode(nil, &e)
}

func noNUL(s string) string {
	b := []byte(s)
	for i := range b {
		if b[i] == 0 {
			b[i] = '?'
		}
	}
	return string(b)
}

// encode appends a message. pgproto3 fails only for messages over 1 GiB, of which we make none.
func encode(b []byte, m pgproto3.Message) []byte {
	out, err := m.Encode(b)
	if err != nil {
		return b
	}
	return out
}

// Welcome is what a client is told when its session begins: that it is who it says, what the server has told of
// itself, and the key that cancels the session.
type Welcome struct {
	Client Startup
	Status []Parameter // the server's ParameterStatus messages, in their order
	Key    Cancel
}

// MaxMinor is the newest version 3.x of the protocol that is spoken here.
const MaxMinor = 2

// Bytes are the messages up to ReadyForQuery. A client that asks for a newer protocol, or for options of the protocol, is
// told first what it gets.
func (w Welcome) Bytes() []byte {
	var b []byte
	unknown := w.Client.ProtocolOptions()
	if w.Client.Minor > MaxMinor || len(unknown) > 0 {
		b = encode(b, &pgproto3.NegotiateProtocolVersion{
			NewestMinorProtocol: 3<<16 | uint32(min(w.Client.Minor, MaxMinor)), UnrecognizedOptions: unknown,
		})
	}
	b = encode(b, &pgproto3.AuthenticationOk{})
	for _, p := range w.Status {
		b = encode(b, &pgproto3.ParameterStatus{Name: p.Name, Value: p.Value})
	}
	b = encode(b, &pgproto3.BackendKeyData{ProcessID: w.Key.PID, SecretKey: w.Key.Secret})
	return encode(b, &pgproto3.ReadyForQuery{TxStatus: 'I'})
}

// errMessage is returned when a server's message cannot be what it should be.
var errMessage = errors.New("malformed message")

// readMessage reads one message of at most limit bytes, not counting its type and length.
func readMessage(r io.Reader, limit int) (byte, []byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	length := int64(binary.BigEndian.Uint32(head[1:])) - 4
	if length < 0 || length > int64(limit) {
		return 0, nil, fmt.Errorf("%w: %q of %d bytes", errMessage, head[0], length)
	}
	body := make([]byte, length)
	if _, err := io.ReadFull(r, body); err != nil {
		return 0, nil, noEOF(err)
	}
	return head[0], body, nil
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
