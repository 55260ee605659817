package proxy

import (
	"bytes"
	"strconv"
	"strings"
)

// The judgments of a gate over one line or one head. RFC 9112 is the grammar;
// where it lets a recipient repair, the gate refuses.

func badRequest(reason, detail string) *violation {
	return &violation{status: 400, reason: reason, detail: detail}
}

func tooLarge() *violation {
	return &violation{status: 431, reason: "head_too_large", detail: "the request head is too large"}
}

func bodyTooLarge() *violation {
	return &violation{status: 413, reason: reasonBodyTooLarge, detail: "the request body is too large"}
}

func bareLF() *violation { return badRequest("bare_lf", "a line ends without CR LF") }

func badChunk() *violation {
	return badRequest("bad_chunk", "the chunked body is malformed")
}

// headFacts is what a head says about where its message ends.
type headFacts struct {
	size, lines int
	hosts       int
	length      int64 // -1: no Content-Length
	chunked     bool
	upgrade     bool
	old         bool // HTTP/1.0
}

func freshHead() headFacts { return headFacts{length: -1} }

func (g *gate) requestLine(line []byte) *violation {
	method, target, old, bad := splitRequestLine(line, g.limits.target)
	g.head.old = old
	g.first = append(g.first[:0], method...)
	if target != nil {
		g.first = append(append(g.first, ' '), target...)
	}
	return bad
}

// splitRequestLine takes a request line apart: one space between the parts. With a
// violation come the parts that were good.
func splitRequestLine(line []byte, limit int) (method, target []byte, old bool, bad *violation) {
	malformed := func() *violation { return badRequest("request_line", "the request line is malformed") }
	m, rest, ok := bytes.Cut(line, []byte(" "))
	if !ok {
		return nil, nil, false, malformed()
	}
	t, version, ok := bytes.Cut(rest, []byte(" "))
	if !ok {
		return nil, nil, false, malformed()
	}
	if !plainMethod(m) {
		return nil, nil, false, badRequest("method", "methods are upper-case words")
	}
	switch string(version) {
	case "HTTP/1.1":
	case "HTTP/1.0":
		old = true
	default:
		return m, nil, false, malformed()
	}
	if bad := checkTarget(t, limit); bad != nil {
		return m, nil, old, bad
	}
	return m, t, old, checkMethod(m)
}

// plainMethod takes upper-case words only: `get` is a method of its own to one
// parser and GET to another.
func plainMethod[T string | []byte](m T) bool {
	if len(m) == 0 || len(m) > 32 {
		return false
	}
	for i := range len(m) {
		if (m[i] < 'A' || m[i] > 'Z') && m[i] != '-' && m[i] != '_' {
			return false
		}
	}
	return true
}

// checkMethod refuses CONNECT, which would make the proxy dial, and TRACE, which
// would hand the headers we add back to the client.
func checkMethod[T string | []byte](m T) *violation {
	switch string(m) {
	case "CONNECT", "TRACE", "TRACK":
		return badRequest("method", "the method "+string(m)+" is not forwarded")
	default:
		return nil
	}
}

// checkTarget takes origin-form only. An absolute target names a host of its
// own, and a space or control byte would end the target early for the upstream.
func checkTarget[T string | []byte](t T, limit int) *violation {
	if len(t) > limit {
		return &violation{status: 414, reason: "target_too_long", detail: "the request target is too long"}
	}
	if len(t) == 0 || t[0] != '/' || len(t) > 1 && t[1] == '/' {
		return badRequest("target_form", "the request target must begin with one /")
	}
	for i := range len(t) {
		if t[i] <= ' ' || t[i] == 0x7f || t[i] == '#' {
			return badRequest("target", "the request target holds a space, a control byte or #")
		}
	}
	return nil
}

// header judges one header line and notes what it says about framing.
func (h *headFacts) header(line []byte, limit int) *violation {
	name, value, bad := h.field(line, limit)
	if bad != nil {
		return bad
	}
	if !interesting(name[0]) {
		return nil
	}
	var buf [foldedMax]byte
	return h.note(fold(buf[:0], name), name, value)
}

// note takes in what one header says about framing. folded is its name, folded.
func (h *headFacts) note(folded, name, value []byte) *violation {
	switch string(folded) {
	case "host":
		h.hosts++
	case "content-length":
		return h.contentLength(name, value)
	case "transfer-encoding":
		return h.transferEncoding(name, value)
	case "upgrade":
		// h2c would switch the connection to a protocol whose requests nobody checks.
		if h.upgrade || !equalFold(value, "websocket") {
			return badRequest("upgrade", "the only upgrade is websocket")
		}
		h.upgrade = true
	case "expect":
		if !equalFold(value, "100-continue") {
			return badRequest("expect", "the only expectation is 100-continue")
		}
	}
	return nil
}

// trailer judges one trailer line. A trailer that speaks of framing or of the
// host could only be meant for a parser that merges trailers into the head.
func (h *headFacts) trailer(line []byte, limit int) *violation {
	name, _, bad := h.field(line, limit)
	if bad != nil {
		return bad
	}
	var buf [foldedMax]byte
	switch string(fold(buf[:0], name)) {
	case "host", "content-length", "transfer-encoding", "upgrade", "connection", "expect":
		return badRequest("trailer", "the trailer may not hold that field")
	}
	return nil
}

// field splits a header line strictly: no folding, no space before the colon, no
// control byte in the value.
func (h *headFacts) field(line []byte, limit int) (name, value []byte, bad *violation) {
	if h.lines++; h.lines > limit {
		return nil, nil, &violation{status: 431, reason: "too_many_headers", detail: "the request has too many header lines"}
	}
	if line[0] == ' ' || line[0] == '\t' {
		return nil, nil, badRequest("folded_header", "a header is folded over two lines")
	}
	name, value, ok := bytes.Cut(line, []byte(":"))
	if !ok || !isToken(name) {
		return nil, nil, badRequest("header", "a header line is malformed")
	}
	for _, b := range value {
		if b < ' ' && b != '\t' || b == 0x7f {
			return nil, nil, badRequest("header", "a header value holds a control byte")
		}
	}
	return name, bytes.Trim(value, " \t"), nil
}

func (h *headFacts) contentLength(name, value []byte) *violation {
	if h.length >= 0 {
		return badRequest("content_length", "Content-Length stands twice")
	}
	n, ok := plainNumber(string(value))
	// Content_Length is no Content-Length to us, and is one to an upstream that
	// reads headers as CGI variables.
	if !ok || bytes.IndexByte(name, '-') < 0 {
		return badRequest("content_length", "Content-Length is no plain number")
	}
	h.length = n
	return nil
}

// plainNumber takes decimal digits only: not "+1", "1,1" or "0x1".
func plainNumber(s string) (int64, bool) {
	if len(s) == 0 || len(s) > 18 {
		return 0, false
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil
}

func (h *headFacts) transferEncoding(name, value []byte) *violation {
	if h.chunked || !equalFold(value, "chunked") || bytes.IndexByte(name, '-') < 0 {
		return badRequest("transfer_encoding", "the only transfer encoding is chunked, once")
	}
	h.chunked = true
	return nil
}

// judge decides over the head as a whole.
func (h *headFacts) judge() *violation {
	switch {
	case h.hosts > 1:
		return badRequest("duplicate_host", "Host stands twice")
	case h.hosts == 0:
		return badRequest("missing_host", "Host is missing")
	case h.chunked && h.length >= 0:
		return badRequest("te_and_cl", "Transfer-Encoding and Content-Length stand together")
	case h.chunked && h.old:
		return badRequest("transfer_encoding", "HTTP/1.0 has no transfer encoding")
	case h.upgrade && (h.chunked || h.length > 0):
		return badRequest("upgrade", "an upgrade has no body")
	default:
		return nil
	}
}

// chunkSize takes hex digits and nothing more: extensions and blanks around the
// size are read in as many ways as there are parsers.
func (g *gate) chunkSize(line []byte) *violation {
	n, ok := plainHex(line)
	if !ok {
		return badChunk()
	}
	g.state, g.need = gateChunkData, n
	if n == 0 {
		g.state = gateTrailer
		g.head.size, g.head.lines = 0, 0
	}
	return nil
}

func isToken[T string | []byte](b T) bool {
	if len(b) == 0 {
		return false
	}
	for i := range len(b) {
		switch c := b[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case c == '-', strings.IndexByte("!#$%&'*+.^_`|~", c) >= 0:
		default:
			return false
		}
	}
	return true
}

// equalFold compares bytes with a lower-case ASCII word.
func equalFold(b []byte, word string) bool {
	if len(b) != len(word) {
		return false
	}
	for i := range b {
		if lower(b[i]) != word[i] {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if c >= 'A' && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

// foldedMax is longer than every name that fold is asked about.
const foldedMax = 64

// fold appends a header's name as the loosest upstream reads it: lower case, and
// "-" for everything that is no letter or digit, as CGI makes "_" of them all.
func fold[T string | []byte](dst []byte, name T) []byte {
	if len(name) > foldedMax {
		return dst
	}
	for i := range len(name) {
		c := lower(name[i])
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			c = '-'
		}
		dst = append(dst, c)
	}
	return dst
}
