package pgwire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Direction says who sends.
type Direction uint8

// The two directions. The zero Direction is invalid.
const (
	FromClient Direction = iota + 1
	FromServer
)

const (
	headLen     = 5
	relayBuffer = 32 << 10
	// MaxPeek is how much of a message a Relay can show before it goes on.
	MaxPeek = 16 << 10
	// MaxMessage is the length of the longest message that PostgreSQL sends or takes (PQ_LARGE_MESSAGE_LIMIT).
	MaxMessage = 1<<30 - 2
	smallLimit = 10000 // PQ_SMALL_MESSAGE_LIMIT: of those without data in them
)

// ErrFrame is returned when bytes are no message that may come from where they came from.
var ErrFrame = errors.New("not a message of this session")

// Message is the beginning of one: its type, the length of its body, and as much of the body as was asked for.
// Prefix is valid only until the call that it was handed to returns.
type Message struct {
	Type   byte
	Length int
	Prefix []byte
}

// Relay passes the messages of one direction on as they come, byte for byte. Its memory is one buffer: a message
// longer than that passes through in parts.
type Relay struct {
	From Direction
	Max  int // of a message's body; 0 is MaxMessage
	// Peek is how many bytes of a message's body Seen is to be shown, at most MaxPeek; negative: Seen is not called.
	// It may be nil.
	Peek func(kind byte) int
	// Seen is called before any byte of the message has been passed on. Its error ends the relay.
	Seen func(Message) error
	// Pass writes bytes on; whole says whether they end where a message ends.
	Pass func(b []byte, whole bool) error
}

// Run relays from r until it ends, or a message is malformed or refused. The error is nil when r ended between messages.
// Whatever came before a message that is refused has been passed on.
func (l *Relay) Run(r io.Reader) error {
	buf := make([]byte, relayBuffer)
	w, left := 0, 0 // bytes in buf; bytes of the current message still to come
	for {
		n, err := r.Read(buf[w:])
		w += n
		at, rest, bad := l.walk(buf[:w], left)
		if at > 0 {
			if perr := l.Pass(buf[:at], rest == 0); perr != nil {
				return perr
			}
			left = rest
			w = copy(buf, buf[at:w])
		}
		switch {
		case bad != nil:
			return bad
		case errors.Is(err, io.EOF) && (w > 0 || left > 0):
			return io.ErrUnexpectedEOF
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// walk goes over the messages in b, of the first of which left bytes are still to come. It returns up to where b can
// be passed on, and how many bytes of the message there are then still to come.
func (l *Relay) walk(b []byte, left int) (at, rest int, err error) {
	for {
		n := min(left, len(b)-at)
		at, left = at+n, left-n
		if left > 0 || len(b)-at < headLen {
			return at, left, nil
		}
		length, err := l.head(b[at:])
		if err != nil {
			return at, 0, err
		}
		if want := l.peek(b[at]); want >= 0 {
			want = min(want, length)
			if len(b)-at < headLen+want {
				return at, 0, nil
			}
			body := b[at+headLen:]
			if err := l.Seen(Message{b[at], length, body[:want:want]}); err != nil {
				return at, 0, err
			}
		}
		at, left = at+headLen, length
	}
}

func (l *Relay) peek(kind byte) int {
	if l.Peek == nil {
		return -1
	}
	return min(l.Peek(kind), MaxPeek)
}

// head checks a message's head and returns the length of its body.
func (l *Relay) head(b []byte) (int, error) {
	limit := l.Max
	if limit <= 0 || limit > MaxMessage {
		limit = MaxMessage
	}
	switch class(l.From, b[0]) {
	case small:
		limit = min(limit, smallLimit)
	case large:
	default:
		return 0, fmt.Errorf("%w: type %q", ErrFrame, b[0])
	}
	length := int64(binary.BigEndian.Uint32(b[1:headLen])) - 4
	if length < 0 || length > int64(limit) {
		return 0, fmt.Errorf("%w: %q of %d bytes, at most %d", ErrFrame, b[0], length, limit)
	}
	return int(length), nil
}

type sizeClass uint8

const (
	never sizeClass = iota
	small
	large
)

// class says what of a session's messages may come from where. Left out are those of logging in ('p', 'R', 'K',
// 'v'), which are over, and of replication ('W'), which no session here has.
func class(from Direction, kind byte) sizeClass {
	switch from {
	case FromClient:
		switch kind {
		case 'Q', 'P', 'B', 'F', 'd':
			return large
		case 'C', 'D', 'E', 'H', 'S', 'X', 'c', 'f':
			return small
		}
	case FromServer:
		switch kind {
		case 'A', 'C', 'D', 'E', 'G', 'H', 'N', 'S', 'T', 'V', 'd', 't':
			return large
		case '1', '2', '3', 'I', 'Z', 'c', 'n', 's':
			return small
		}
	}
	return never
}

// Text is the bytes of b up to its first NUL, or all of b.
func Text(b []byte) []byte {
	for i := range b {
		if b[i] == 0 {
			return b[:i]
		}
	}
	return b
}

// ParseText is the statement in the beginning of a Parse message: what follows the prepared statement's name.
func ParseText(prefix []byte) []byte {
	name := Text(prefix)
	if len(name) == len(prefix) {
		return nil
	}
	return Text(prefix[len(name)+1:])
}
