package proxy

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/hallpass/hallpass/grant"
)

// maxHeaderLines bounds a request's head and trailers.
const maxHeaderLines = 128

// ruleTrace is a header of W3C trace context, which is ours to say anew where
// spans are recorded.
const ruleTrace headerRule = 100

// field is a header line that is to be passed on: places in the head's bytes.
type field struct {
	start, name, end int
	rule             headerRule
}

// errand is one request. What others may see of it while it runs is rec alone.
type errand struct {
	rec     record
	spans   spans
	started time.Time
	method  string
	target  string
	host    string
	shape   shape
	soft    *violation // of a header; told if nothing worse turns up
	last    bool       // nothing follows on the client's connection
	expect  bool
	types   int
	tes     int
	trace   http.Header
	trailer []string // names of trailers that may pass, in lower case

	decision, reason string
	status           int
	bytesIn          int64
	bytesOut         int64
	finished         bool
	silent           bool // counted as missed; not recorded
	spoiled          bool // the connection must break off, lest what was sent look whole
}

// readHead reads a request's head, line by line, and judges each as the gate does.
// It returns nil and no violation when the connection is at its end.
func (f *front) readHead() ([]byte, *violation) {
	f.head, f.x, f.began = freshHead(), errand{}, time.Time{}
	f.desk.fields = f.desk.fields[:0]
	limit := f.p.cfg.limits.headerBytes
	for line, seen := 0, 0; ; {
		all := f.desk.in[f.r:f.w]
		i := bytes.IndexByte(all[seen:], '\n')
		if i < 0 {
			if len(all) > limit {
				return nil, f.blame(tooLarge())
			}
			seen = len(all)
			if bad, err := f.moreHead(); bad != nil || err != nil {
				return nil, bad
			}
			continue
		}
		end := seen + i + 1
		if end > limit {
			return nil, f.blame(tooLarge())
		}
		done, bad := f.headLine(all[line:end], line)
		if bad != nil {
			return nil, f.blame(bad)
		}
		line, seen = end, end
		if done {
			f.r += end
			return all[:end:end], nil
		}
	}
}

// blame adds to a violation what was read of the request it is of.
func (f *front) blame(bad *violation) *violation {
	v := *bad
	v.method, v.target = f.x.method, f.x.target
	return &v
}

// moreHead reads on within a head, which has a time of its own to be whole.
func (f *front) moreHead() (*violation, error) {
	if f.began.IsZero() {
		f.began = time.Now()
	}
	f.armed = f.began.Add(f.p.cfg.limits.headerTime)
	if err := f.tls.SetReadDeadline(f.armed); err != nil {
		return nil, err
	}
	err := f.more()
	switch {
	case err == nil:
		return nil, nil //nolint:nilnil // there is more, and nothing is wrong with it
	case errors.Is(err, os.ErrDeadlineExceeded):
		return f.blame(&violation{status: http.StatusRequestTimeout, reason: "slow_headers", detail: "the request head took too long"}), err
	case errors.Is(err, io.EOF):
		return f.blame(badRequest("incomplete_head", "the connection ended within a request head")), err
	default:
		return nil, err
	}
}

// headLine judges one line, LF included, that begins at at, and says whether the head ends with it.
func (f *front) headLine(line []byte, at int) (done bool, bad *violation) {
	if len(line) < 2 || line[len(line)-2] != '\r' {
		return false, bareLF()
	}
	line = line[:len(line)-2]
	switch {
	case at == 0:
		return false, f.requestLine(line)
	case len(line) == 0:
		return true, f.head.judge()
	default:
		return false, f.header(line, at)
	}
}

func (f *front) requestLine(line []byte) *violation {
	method, target, old, bad := splitRequestLine(line, f.p.cfg.limits.targetBytes)
	f.head.old = old
	f.x.method, f.x.target = methodText(method), string(target)
	return bad
}

// methodText is string(b) without a copy of the usual ones.
func methodText(b []byte) string {
	switch string(b) {
	case http.MethodGet:
		return http.MethodGet
	case http.MethodPost:
		return http.MethodPost
	case http.MethodPut:
		return http.MethodPut
	case http.MethodHead:
		return http.MethodHead
	case http.MethodDelete:
		return http.MethodDelete
	case http.MethodPatch:
		return http.MethodPatch
	case http.MethodOptions:
		return http.MethodOptions
	default:
		return string(b)
	}
}

// header judges one header line, and notes what becomes of it.
func (f *front) header(line []byte, at int) *violation {
	name, value, bad := f.head.field(line, maxHeaderLines)
	if bad != nil {
		return bad
	}
	rule := ruleKeep
	if interesting(name[0]) {
		var buf [foldedMax]byte
		folded := fold(buf[:0], name)
		if bad := f.head.note(folded, name, value); bad != nil {
			return bad
		}
		rule = ruleOf(folded)
		if bad := f.sort(&rule, name, value); bad != nil && f.x.soft == nil {
			f.x.soft = bad
		}
	}
	if rule == ruleKeep || rule == ruleType || rule == ruleTrace {
		f.desk.fields = append(f.desk.fields, field{at, at + len(name), at + len(line), rule})
	}
	return nil
}

// sort is shape.header for a header line as it stands on the wire.
func (f *front) sort(rule *headerRule, name, value []byte) *violation {
	x := &f.x
	switch *rule {
	case ruleKeep:
		if equalFold(name, "traceparent") || equalFold(name, "tracestate") {
			*rule = ruleTrace
			if x.trace == nil {
				x.trace = make(http.Header, 2)
			}
			x.trace.Add(string(name), string(value))
		}
	case ruleOverride:
		return badRequest("override_header", "a header asks for another method or path than the request line")
	case ruleHost:
		x.host = f.hostText(value)
	case ruleUpgrade:
		x.shape.websocket = true
	case ruleConnection:
		return f.connection(value)
	case ruleExpect:
		if x.expect {
			return badRequest("expect", "the only expectation is 100-continue")
		}
		x.expect = true
	case ruleTE:
		x.tes++
		x.shape.trailers = x.tes == 1 && equalFold(value, "trailers")
	case ruleType:
		if x.types++; x.types > 1 || bytes.IndexByte(name, '-') < 0 {
			return badRequest("content_type", "Content-Type stands twice")
		}
		const grpc = "application/grpc"
		x.shape.grpc = len(value) >= len(grpc) && equalFold(value[:len(grpc)], grpc)
	case ruleHop:
		if equalFold(name, "trailer") {
			x.announce(value)
		}
	case ruleStrip, ruleLength, ruleEncoding, ruleTrace:
	}
	return nil
}

// hostText is the Host, which on one connection is nearly always the same.
func (f *front) hostText(value []byte) string {
	if string(value) == f.hostBefore {
		return f.hostBefore
	}
	f.hostBefore = string(value)
	return f.hostBefore
}

func (f *front) connection(value []byte) *violation {
	switch {
	case equalFold(value, "keep-alive"):
		return nil
	case equalFold(value, "close"):
		f.x.last = true
		return nil
	}
	for option := range bytes.SplitSeq(value, []byte(",")) {
		if equalFold(bytes.Trim(option, " \t"), "close") {
			f.x.last = true
		}
	}
	return f.x.shape.connection([]string{string(value)})
}

// announce notes the names of trailers that may pass. An HTTP/1 client can send
// trailers it never announced, and an upstream that merges them into the head would
// take x-hallpass-subject from there.
func (x *errand) announce(value []byte) {
	for name := range bytes.SplitSeq(value, []byte(",")) {
		name = bytes.ToLower(bytes.Trim(name, " \t"))
		var buf [foldedMax]byte
		if len(x.trailer) < maxHeaderLines && isToken(name) && len(name) <= foldedMax && ruleOf(fold(buf[:0], name)) == ruleKeep {
			x.trailer = append(x.trailer, string(name))
		}
	}
}

// screen judges the request as a whole: what config.screen does for HTTP/2.
func (f *front) screen() *violation {
	x, cfg := &f.x, f.p.cfg
	var err error
	if x.shape.path, err = grant.ParsePath(x.target, cfg.path); err != nil {
		return badRequest("ambiguous_path", pathDetail(err))
	}
	switch {
	case cfg.tcp:
		return badRequest("not_http", "this service carries bytes and no requests")
	case !cfg.knownHost(x.host):
		return unknownHost()
	case x.soft != nil:
		return x.soft
	case cfg.limits.bodyBytes > 0 && f.head.length > cfg.limits.bodyBytes:
		return bodyTooLarge()
	case x.shape.websocket && (!x.shape.switching || x.method != http.MethodGet || f.hasBody()):
		return badRequest("upgrade", "a WebSocket begins with a GET that says Connection: upgrade")
	default:
		return nil
	}
}

func (f *front) hasBody() bool { return f.head.chunked || f.head.length > 0 }

// compose appends the head for the upstream: the request line and the kept header
// lines are the bytes that were judged.
func (f *front) compose(b, head []byte) []byte {
	x := &f.x
	b = append(append(append(append(b, x.method...), ' '), x.target...), " HTTP/1.1\r\nHost: "...)
	b = append(append(b, x.host...), "\r\n"...)
	retrace := f.p.tele.tracer != nil
	for i := range f.desk.fields {
		if l := &f.desk.fields[i]; l.rule != ruleTrace || !retrace {
			b = append(append(b, head[l.start:l.end]...), "\r\n"...)
		}
	}
	if retrace {
		for name, values := range x.trace {
			for _, v := range values {
				b = append(append(append(append(b, name...), ": "...), v...), "\r\n"...)
			}
		}
	}
	b = append(b, f.c.headers.block...)
	switch {
	case x.shape.websocket:
		b = append(b, "Connection: Upgrade\r\nUpgrade: websocket\r\n"...)
	case f.oneUse():
		b = append(b, "Connection: close\r\n"...)
	}
	if x.shape.trailers {
		b = append(b, "TE: trailers\r\n"...)
	}
	if f.head.chunked {
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
		for _, name := range x.trailer {
			b = append(append(append(b, "Trailer: "...), name...), "\r\n"...)
		}
	} else if f.head.length >= 0 {
		b = strconv.AppendInt(append(b, "Content-Length: "...), f.head.length, 10)
		b = append(b, "\r\n"...)
	}
	return append(b, "\r\n"...)
}

// oneUse says whether the connection to the upstream must carry nothing else: one
// that overlooks the body of a GET would take it for the next request, one that
// nobody matched.
func (f *front) oneUse() bool { return f.hasBody() && bodyUnexpected(f.x.method) }

// values are a header's values by its exact name, of those that were kept.
func (f *front) values(head []byte, name string) []string {
	var all []string
	for _, l := range f.desk.fields {
		if equalFold(head[l.start:l.name], name) {
			all = append(all, string(bytes.Trim(head[l.name+1:l.end], " \t")))
		}
	}
	return all
}
