package pgwire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Kind says what a client begins with.
type Kind uint8

// What a client can begin with. The zero Kind is invalid.
const (
	KindStartup Kind = iota + 1 // it wants a session
	KindCancel                  // it wants another session's statement cancelled
	KindTLS                     // it asks for TLS on this connection
	KindGSS                     // it asks for GSSAPI encryption on this connection
)

// First is what a client begins with.
type First struct {
	Kind    Kind
	Startup Startup // of KindStartup
	Cancel  Cancel  // of KindCancel
}

// Startup is a client's wish for a session.
type Startup struct {
	Minor  uint16      // of the protocol's version 3
	Params []Parameter // as they came; no name is there twice, in whatever case
}

// Parameter is one of a Startup's. Its name is as it came.
type Parameter struct{ Name, Value string }

// Cancel names the session whose statement is to be cancelled.
type Cancel struct {
	PID    uint32
	Secret []byte
}

const (
	codeCancel = 80877102
	codeTLS    = 80877103
	codeGSS    = 80877104

	maxStartup    = 10000 // MAX_STARTUP_PACKET_LENGTH of PostgreSQL
	maxParameters = 64
	maxSecret     = 256
)

// ErrFirst is returned when what a client begins with is not PostgreSQL's protocol, or is it in two readings.
var ErrFirst = errors.New("not a PostgreSQL client's beginning")

func badFirst(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrFirst, fmt.Sprintf(format, args...))
}

// ReadFirst reads one beginning from r, and not a byte more. Its error is ErrFirst, or r's own.
func ReadFirst(r io.Reader) (First, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return First{}, err
	}
	length := binary.BigEndian.Uint32(head[:])
	if length < 8 || length > maxStartup {
		return First{}, badFirst("length %d", length)
	}
	body := make([]byte, length-4)
	if _, err := io.ReadFull(r, body); err != nil {
		return First{}, fmt.Errorf("first packet: %w", err)
	}
	return parseFirst(body)
}

func parseFirst(body []byte) (First, error) {
	code, rest := binary.BigEndian.Uint32(body), body[4:]
	switch {
	case code == codeTLS && len(rest) == 0:
		return First{Kind: KindTLS}, nil
	case code == codeGSS && len(rest) == 0:
		return First{Kind: KindGSS}, nil
	case code == codeCancel && len(rest) >= 8 && len(rest) <= 4+maxSecret:
		return First{Kind: KindCancel, Cancel: Cancel{binary.BigEndian.Uint32(rest), rest[4:]}}, nil
	case code>>16 == 3:
		params, err := parseParameters(rest)
		return First{Kind: KindStartup, Startup: Startup{uint16(code), params}}, err
	default:
		return First{}, badFirst("code %d with %d bytes", code, len(rest))
	}
}

// parseParameters reads NAME 0 VALUE 0 … 0, with nothing after the last 0.
func parseParameters(b []byte) ([]Parameter, error) {
	if len(b) == 0 || b[len(b)-1] != 0 {
		return nil, badFirst("the parameters do not end")
	}
	text := string(b[:len(b)-1])
	var params []Parameter
	for text != "" {
		name, after, ok := strings.Cut(text, "\x00")
		value, rest, more := strings.Cut(after, "\x00")
		switch {
		case !ok || !more:
			return nil, badFirst("a parameter is cut off")
		case name == "":
			return nil, badFirst("bytes after the parameters' end")
		case len(params) == maxParameters:
			return nil, badFirst("more than %d parameters", maxParameters)
		}
		for _, p := range params {
			// Settings are compared without regard to case: the last of two would win, or the first, as the
			// reader pleases.
			if strings.EqualFold(p.Name, name) {
				return nil, badFirst("the parameter %q twice", name)
			}
		}
		params = append(params, Parameter{name, value})
		text = rest
	}
	return params, nil
}

// Get is the value of the parameter of exactly that name, and whether it is there.
func (s Startup) Get(name string) (string, bool) {
	for _, p := range s.Params {
		if p.Name == name {
			return p.Value, true
		}
	}
	return "", false
}

// ProtocolOptions are the names of the parameters that ask for extensions of the protocol. There are none.
func (s Startup) ProtocolOptions() []string {
	var names []string
	for _, p := range s.Params {
		if strings.HasPrefix(p.Name, "_pq_.") {
			names = append(names, p.Name)
		}
	}
	return names
}

// append appends the packet that asks for s.
func (s Startup) append(b []byte) ([]byte, error) {
	at := len(b)
	b = append(b, 0, 0, 0, 0)
	b = binary.BigEndian.AppendUint32(b, 3<<16|uint32(s.Minor))
	for _, p := range s.Params {
		// A name or value with a NUL would add parameters of its own.
		if p.Name == "" || strings.Contains(p.Name, "\x00") || strings.Contains(p.Value, "\x00") {
			return nil, badFirst("the parameter %q cannot be sent", p.Name)
		}
		b = append(append(append(append(b, p.Name...), 0), p.Value...), 0)
	}
	b = append(b, 0)
	if len(b)-at > maxStartup {
		return nil, badFirst("parameters of %d bytes", len(b)-at)
	}
	binary.BigEndian.PutUint32(b[at:], uint32(len(b)-at))
	return b, nil
}

// Append appends the packet of c.
func (c Cancel) Append(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(12+len(c.Secret)))
	b = binary.BigEndian.AppendUint32(b, codeCancel)
	b = binary.BigEndian.AppendUint32(b, c.PID)
	return append(b, c.Secret...)
}

// AppendTLSRequest appends the packet that asks for TLS.
func AppendTLSRequest(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, 8)
	return binary.BigEndian.AppendUint32(b, codeTLS)
}
