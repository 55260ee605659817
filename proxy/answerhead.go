package proxy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"
)

const (
	maxAnswerHead  = 1 << 20
	maxAnswerLines = 1000
	maxInterim     = 16 // answers of status 1xx before the one that counts
)

// errAnswer is returned when the upstream's answer cannot be read in one way.
var errAnswer = errors.New("the upstream's answer is malformed")

func malformed(what string) error { return fmt.Errorf("%w: %s", errAnswer, what) }

// framing is how an answer's body ends.
type framing uint8

const (
	framedNone framing = iota
	framedLength
	framedChunks
	framedClose
)

// reply is an upstream's answer, as far as its head says.
type reply struct {
	status  int
	reason  []byte // the status line's text
	old     bool   // HTTP/1.0
	framing framing
	length  int64 // of the body with framedLength; else what Content-Length said, or -1
	close   bool  // the upstream closes its connection
	upgrade bool  // Connection: upgrade and Upgrade: websocket
	dated   bool
	named   [][]byte // by Connection: to be taken out

	switching, websocket bool
	chunked              bool
}

// read reads an answer's head strictly, status line first, and notes the lines to pass
// on in fields. method is the request's. Where a proxy is lenient, whoever can
// make the upstream echo a header ends one answer and begins another in it.
func (a *reply) read(head []byte, method string, fields []field) ([]field, error) {
	*a = reply{length: -1, named: a.named[:0]}
	fields = fields[:0]
	for at, lines := 0, 0; ; lines++ {
		i := bytes.IndexByte(head[at:], '\n')
		if i < 1 || head[at+i-1] != '\r' {
			return fields, malformed("a line ends without CR LF")
		}
		line := head[at : at+i-1]
		switch {
		case lines > maxAnswerLines:
			return fields, malformed("too many header lines")
		case lines == 0:
			if err := a.statusLine(line); err != nil {
				return fields, err
			}
		case len(line) == 0:
			return a.passed(head, fields), a.judge(method)
		default:
			f, err := a.header(line, at)
			if err != nil {
				return fields, err
			}
			if f.rule != ruleStrip {
				fields = append(fields, f)
			}
		}
		at += i + 1
	}
}

// statusLine takes "HTTP/1.1 200 OK"; the text may be empty, with or without its blank.
func (a *reply) statusLine(line []byte) error {
	const digits = len("HTTP/1.1 ")
	if len(line) < digits+3 || string(line[:7]) != "HTTP/1." || line[7] != '0' && line[7] != '1' || line[8] != ' ' {
		return malformed("status line")
	}
	a.old = line[7] == '0'
	for _, c := range line[digits : digits+3] {
		if c < '0' || c > '9' {
			return malformed("status line")
		}
		a.status = a.status*10 + int(c-'0')
	}
	if a.status < 100 || a.status > 599 {
		return malformed("status")
	}
	if rest := line[digits+3:]; len(rest) > 0 {
		if rest[0] != ' ' || !plainValue(rest) {
			return malformed("status line")
		}
		a.reason = rest[1:]
	}
	return nil
}

// plainValue says whether a header's value holds no control byte but tabs.
func plainValue[T string | []byte](value T) bool {
	for i := range len(value) {
		if b := value[i]; b < ' ' && b != '\t' || b == 0x7f {
			return false
		}
	}
	return true
}

// header judges one line and says by ruleKeep or ruleStrip whether it is passed on.
func (a *reply) header(line []byte, at int) (field, error) {
	if line[0] == ' ' || line[0] == '\t' {
		return field{}, malformed("a header is folded over two lines")
	}
	name, value, ok := bytes.Cut(line, []byte(":"))
	if !ok || !isToken(name) || !plainValue(value) {
		return field{}, malformed("header line")
	}
	f := field{at, at + len(name), at + len(line), ruleKeep}
	switch lower(name[0]) {
	case 'c', 'd', 'k', 'p', 't', 'u':
	default:
		return f, nil
	}
	value = bytes.Trim(value, " \t")
	switch {
	case equalFold(name, "content-length"):
		n, ok := plainNumber(string(value))
		if !ok || a.length >= 0 {
			return field{}, malformed("Content-Length")
		}
		a.length = n
		f.rule = ruleStrip
	case equalFold(name, "transfer-encoding"):
		if a.chunked || !equalFold(value, "chunked") {
			return field{}, malformed("Transfer-Encoding")
		}
		a.chunked = true
		f.rule = ruleStrip
	case equalFold(name, "connection"):
		a.connection(value)
		f.rule = ruleStrip
	case equalFold(name, "upgrade"):
		a.websocket = equalFold(value, "websocket")
		f.rule = ruleStrip
	case equalFold(name, "keep-alive"), equalFold(name, "proxy-connection"), equalFold(name, "proxy-authenticate"), equalFold(name, "te"):
		f.rule = ruleStrip
	case equalFold(name, "trailer"):
		f.rule = ruleHop // passed on where trailers can be
	case equalFold(name, "date"):
		a.dated = true
	}
	return f, nil
}

func (a *reply) connection(value []byte) {
	for option := range bytes.SplitSeq(value, []byte(",")) {
		switch option = bytes.Trim(option, " \t"); {
		case len(option) == 0, equalFold(option, "keep-alive"):
		case equalFold(option, "close"):
			a.close = true
		case equalFold(option, "upgrade"):
			a.switching = true
		default:
			a.named = append(a.named, option)
		}
	}
}

// judge decides where the body ends (RFC 9112 §6.3).
func (a *reply) judge(method string) error {
	a.close = a.close || a.old
	a.upgrade = a.switching && a.websocket
	bodiless := method == http.MethodHead || a.status == http.StatusNotModified
	switch {
	case a.chunked && (a.length >= 0 || a.old):
		return malformed("Transfer-Encoding beside Content-Length, or in HTTP/1.0")
	case a.status < 200 || a.status == http.StatusNoContent:
		// Content in these is one reader's body and another's next answer.
		if a.chunked || a.length > 0 {
			return malformed("content in an answer that has none")
		}
		a.length, a.framing = -1, framedNone
	case bodiless:
		a.framing = framedNone
	case a.chunked:
		a.framing = framedChunks
	case a.length >= 0:
		a.framing = framedLength
	default:
		a.framing, a.close = framedClose, true
	}
	return nil
}

// passed takes out of fields what Connection names.
func (a *reply) passed(head []byte, fields []field) []field {
	if len(a.named) == 0 {
		return fields
	}
	kept := fields[:0]
	for _, f := range fields {
		named := false
		for _, name := range a.named {
			named = named || bytes.EqualFold(name, head[f.start:f.name])
		}
		if !named {
			kept = append(kept, f)
		}
	}
	return kept
}

// compose appends the head for the client. old says that it speaks HTTP/1.0, last
// that its connection ends with this answer.
func (a *reply) compose(b, head []byte, fields []field, old, last bool) []byte {
	b = strconv.AppendInt(append(b, "HTTP/1.1 "...), int64(a.status), 10)
	b = append(append(append(b, ' '), a.reason...), "\r\n"...)
	chunks := a.framing == framedChunks && !old
	for i := range fields {
		if f := &fields[i]; f.rule == ruleKeep || chunks {
			b = append(append(b, head[f.start:f.end]...), "\r\n"...)
		}
	}
	if !a.dated {
		b = time.Now().UTC().AppendFormat(append(b, "Date: "...), http.TimeFormat)
		b = append(b, "\r\n"...)
	}
	if a.length >= 0 {
		b = strconv.AppendInt(append(b, "Content-Length: "...), a.length, 10)
		b = append(b, "\r\n"...)
	}
	if chunks {
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
	}
	switch {
	case a.status == http.StatusSwitchingProtocols:
		b = append(b, "Connection: Upgrade\r\nUpgrade: websocket\r\n"...)
	case last:
		b = append(b, "Connection: close\r\n"...)
	}
	return append(b, "\r\n"...)
}

// readAnswer reads up to the end of an answer's head into buf, of which w bytes are
// read already, and returns how long the head is. The first error before any byte
// comes back as it is.
func readAnswer(from io.Reader, buf []byte, w int) (grown []byte, head, read int, err error) {
	for seen := 0; ; {
		for i := bytes.IndexByte(buf[seen:w], '\n'); i >= 0; i = bytes.IndexByte(buf[seen:w], '\n') {
			end := seen + i + 1
			switch {
			case end < 2 || buf[end-2] != '\r':
				return buf, 0, w, malformed("a line ends without CR LF")
			case end >= 4 && buf[end-3] == '\n' || end == 2:
				return buf, end, w, nil
			}
			seen = end
		}
		if w == len(buf) {
			if len(buf) >= maxAnswerHead {
				return buf, 0, w, malformed("the head is too large")
			}
			buf = append(buf, make([]byte, len(buf))...)
		}
		n, err := from.Read(buf[w:])
		if w += n; n == 0 {
			switch {
			case err == nil:
				err = io.ErrNoProgress
			case w > 0 && errors.Is(err, io.EOF):
				err = malformed("it ends within its head")
			}
			return buf, 0, w, err
		}
	}
}

// readFinal reads answers until one that is not of status 1xx, which are not
// passed on, or of 101. It leaves the head at the buffer's beginning.
func (a *reply) readFinal(from io.Reader, buf []byte, method string, fields []field) (grown []byte, head, read int, kept []field, err error) {
	n := 0
	for range maxInterim {
		if buf, head, n, err = readAnswer(from, buf, n); err != nil {
			return buf, 0, n, fields, err
		}
		if fields, err = a.read(buf[:head], method, fields); err != nil {
			return buf, 0, n, fields, err
		}
		if a.status >= 200 || a.status == http.StatusSwitchingProtocols {
			return buf, head, n, fields, nil
		}
		n = copy(buf, buf[head:n])
	}
	return buf, 0, n, fields, malformed("too many answers of status 1xx")
}

// chunks follows a chunked body. Extensions and blanks around a size are read in
// as many ways as there are parsers; there are none here.
type chunks struct {
	state chunkState
	need  int64
	size  [17]byte // the part of a size line that has come
	have  int
	tail  []byte // of the trailers
}

type chunkState uint8

const (
	chunkSize chunkState = iota
	chunkData
	chunkEnd
	chunkTrailer
	chunkDone
)

// next takes in some of b, which is not empty and begins where the last ended, and
// returns how much, and what of it is data.
func (k *chunks) next(b []byte) (used int, data []byte, bad *violation) {
	switch k.state {
	case chunkData:
		n := int(min(k.need, int64(len(b))))
		if k.need -= int64(n); k.need == 0 {
			k.state, k.have = chunkEnd, 0
		}
		return n, b[:n], nil
	case chunkSize, chunkEnd:
		i := bytes.IndexByte(b, '\n')
		n := i + 1
		if i < 0 {
			n = len(b)
		}
		if k.have+n > len(k.size) {
			return 0, nil, badChunk()
		}
		k.have += copy(k.size[k.have:], b[:n])
		if i < 0 {
			return n, nil, nil
		}
		line := k.size[:k.have]
		k.have = 0
		if len(line) < 2 || line[len(line)-2] != '\r' {
			return 0, nil, bareLF()
		}
		return n, nil, k.line(line[:len(line)-2])
	case chunkTrailer:
		return k.trailers(b)
	case chunkDone:
	}
	return 0, nil, nil
}

func (k *chunks) line(line []byte) *violation {
	if k.state == chunkEnd {
		if len(line) > 0 {
			return badChunk()
		}
		k.state = chunkSize
		return nil
	}
	n, ok := plainHex(line)
	if !ok {
		return badChunk()
	}
	k.need, k.state = n, chunkData
	if n == 0 {
		k.state = chunkTrailer
	}
	return nil
}

// maxTrailers bounds the trailers' bytes.
const maxTrailers = 16 << 10

// trailers takes trailer lines into tail until the empty one, which stays out.
func (k *chunks) trailers(b []byte) (used int, data []byte, bad *violation) {
	i := bytes.IndexByte(b, '\n')
	n := i + 1
	if i < 0 {
		n = len(b)
	}
	if len(k.tail)+n > maxTrailers {
		return 0, nil, tooLarge()
	}
	k.tail = append(k.tail, b[:n]...)
	if i < 0 {
		return n, nil, nil
	}
	last := k.tail[bytes.LastIndexByte(k.tail[:len(k.tail)-1], '\n')+1:]
	if len(last) < 2 || last[len(last)-2] != '\r' {
		return 0, nil, bareLF()
	}
	if len(last) == 2 {
		k.state, k.tail = chunkDone, k.tail[:len(k.tail)-2]
		return n, nil, nil
	}
	facts := headFacts{lines: bytes.Count(k.tail, []byte("\n")) - 1}
	return n, nil, facts.trailer(last[:len(last)-2], maxHeaderLines)
}

// plainHex takes hex digits and nothing more.
func plainHex(line []byte) (int64, bool) {
	if len(line) == 0 || len(line) > 15 {
		return 0, false
	}
	var n int64
	for _, b := range line {
		switch {
		case b >= '0' && b <= '9':
			n = n<<4 | int64(b-'0')
		case b >= 'a' && b <= 'f':
			n = n<<4 | int64(b-'a'+10)
		case b >= 'A' && b <= 'F':
			n = n<<4 | int64(b-'A'+10)
		default:
			return 0, false
		}
	}
	return n, true
}
