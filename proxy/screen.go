package proxy

import (
	"errors"
	"net/http"
	"strings"

	"github.com/hallpass/hallpass/grant"
)

// shape is what a request's headers make of it.
type shape struct {
	path      grant.Path
	grpc      bool
	websocket bool
	trailers  bool // TE: trailers

	switching bool // Connection: upgrade
}

// headerRule is what happens to a header by its name.
type headerRule uint8

const (
	ruleKeep headerRule = iota
	ruleStrip
	ruleOverride
	ruleHop
	ruleLength
	ruleEncoding
	ruleHost
	ruleUpgrade
	ruleConnection
	ruleExpect
	ruleTE
	ruleType
)

// ruleOf classifies a header name as the loosest upstream would read it.
func ruleOf(folded []byte) headerRule {
	switch string(folded) {
	case "content-length":
		return ruleLength
	case "transfer-encoding":
		return ruleEncoding
	case "host":
		return ruleHost
	case "upgrade":
		return ruleUpgrade
	case "connection":
		return ruleConnection
	case "expect":
		return ruleExpect
	case "te":
		return ruleTE
	case "content-type":
		return ruleType
	case "keep-alive", "proxy-connection", "proxy-authenticate", "proxy-authorization", "trailer":
		return ruleHop
	// The upstream would run another method, or serve another path, than was matched.
	case "x-http-method-override", "x-http-method", "x-method-override", "x-original-method", "http-method-override",
		"x-original-url", "x-original-uri", "x-original-path", "x-rewrite-url", "x-rewrite-uri", "x-override-url":
		return ruleOverride
	// What only a proxy may say: the client's word for who or where it is counts for nothing.
	case "forwarded", "x-real-ip", "true-client-ip":
		return ruleStrip
	}
	if hasPrefix(folded, "x-hallpass-") || hasPrefix(folded, "x-forwarded-") {
		return ruleStrip
	}
	return ruleKeep
}

func hasPrefix(b []byte, prefix string) bool {
	return len(b) >= len(prefix) && string(b[:len(prefix)]) == prefix
}

// interesting says whether a header name may begin one that ruleOf knows.
func interesting(c byte) bool {
	switch lower(c) {
	case 'c', 'e', 'f', 'h', 'k', 'p', 't', 'u', 'x':
		return true
	default:
		return false
	}
}

// screen refuses what two parsers could read in two ways, and takes out of the
// header what is between us and the client only, or is ours to say. It is the
// one place where an HTTP/2 request is judged; an HTTP/1 one has been through
// its gate besides.
func (c *config) screen(r *http.Request) (shape, *violation) {
	var s shape
	if c.tcp {
		return s, badRequest("not_http", "this service carries bytes and no requests")
	}
	if !plainMethod(r.Method) {
		return s, badRequest("method", "methods are upper-case words")
	}
	if bad := checkMethod(r.Method); bad != nil {
		return s, bad
	}
	if bad := checkTarget(r.RequestURI, c.limits.targetBytes); bad != nil {
		return s, bad
	}
	var err error
	if s.path, err = grant.ParsePath(r.RequestURI, c.path); err != nil {
		return s, badRequest("ambiguous_path", pathDetail(err))
	}
	if !c.knownHost(r.Host) {
		return s, unknownHost()
	}
	size := len(r.RequestURI)
	for name, values := range r.Header {
		size += len(name)
		for _, v := range values {
			size += len(v)
		}
		if name == "" || !interesting(name[0]) {
			continue
		}
		if bad := s.header(r, name, values); bad != nil {
			return s, bad
		}
	}
	switch {
	case size > c.limits.headerBytes:
		return s, tooLarge()
	case c.limits.bodyBytes > 0 && r.ContentLength > c.limits.bodyBytes:
		return s, bodyTooLarge()
	case s.websocket && (!s.switching || r.Method != http.MethodGet || r.ProtoMajor != 1 || r.ContentLength != 0):
		return s, badRequest("upgrade", "a WebSocket begins with a GET that says Connection: upgrade")
	case s.websocket && c.upstream.h2c:
		return s, badRequest("upgrade", "this service speaks HTTP/2 to its upstream, which has no WebSocket")
	}
	return s, nil
}

func unknownHost() *violation {
	return &violation{status: http.StatusMisdirectedRequest, reason: "unknown_host", detail: "this service does not go by that name"}
}

func pathDetail(err error) string {
	if errors.Is(err, grant.ErrAmbiguousPath) {
		return err.Error()
	}
	return "the path cannot be read"
}

func (s *shape) header(r *http.Request, name string, values []string) *violation {
	for _, v := range values {
		// In HTTP/1 blanks around a value are none of it, and in HTTP/2 there are none (RFC 9113
		// §8.2.1). With them a value would be judged as another than the one that the upstream reads.
		if strings.Trim(v, " \t") != v {
			return badRequest("header", "a header's value begins or ends with a blank")
		}
	}
	var buf [foldedMax]byte
	switch ruleOf(fold(buf[:0], name)) {
	case ruleKeep, ruleTrace:
	case ruleStrip, ruleHop:
		delete(r.Header, name)
	case ruleOverride:
		return badRequest("override_header", "a header asks for another method or path than the request line")
	case ruleLength:
		if _, ok := plainNumber(strings.Join(values, ",")); !ok || name != "Content-Length" {
			return badRequest("content_length", "Content-Length is no plain number")
		}
		delete(r.Header, name) // the transport says it again, from r.ContentLength
	case ruleEncoding:
		return badRequest("transfer_encoding", "the only transfer encoding is chunked, once")
	case ruleHost:
		if len(values) != 1 || values[0] != r.Host || name != "Host" {
			return badRequest("duplicate_host", "Host and :authority differ")
		}
		delete(r.Header, name)
	case ruleUpgrade:
		if len(values) != 1 || !strings.EqualFold(values[0], "websocket") || name != "Upgrade" {
			return badRequest("upgrade", "the only upgrade is websocket")
		}
		s.websocket = true
		delete(r.Header, name)
	case ruleConnection:
		if bad := s.connection(values); bad != nil {
			return bad
		}
		delete(r.Header, name)
	case ruleExpect:
		if len(values) != 1 || !strings.EqualFold(values[0], "100-continue") {
			return badRequest("expect", "the only expectation is 100-continue")
		}
	case ruleTE:
		s.trailers = len(values) == 1 && strings.EqualFold(values[0], "trailers")
		delete(r.Header, name)
	case ruleType:
		if len(values) != 1 || name != "Content-Type" {
			return badRequest("content_type", "Content-Type stands twice")
		}
		s.grpc = len(values[0]) >= len("application/grpc") && strings.EqualFold(values[0][:len("application/grpc")], "application/grpc")
	}
	return nil
}

// connection refuses to take out what a client names there, beyond the few names
// that are hop-by-hop by nature: naming X-Forwarded-For, Cookie or Content-Type
// would have the proxy remove, on the client's word, what the upstream relies on.
func (s *shape) connection(values []string) *violation {
	for _, v := range values {
		for option := range strings.SplitSeq(v, ",") {
			switch strings.ToLower(strings.Trim(option, " \t")) {
			case "upgrade":
				s.switching = true
			case "", "close", "keep-alive", "te", "trailer", "trailers", "proxy-connection":
			default:
				return badRequest("connection_option", "Connection names a header that is not hop-by-hop")
			}
		}
	}
	return nil
}

// knownHost says whether a Host or :authority is one of the service's names,
// with or without a port. Elsewhere it could choose another virtual host of the
// upstream than the one the grant speaks of.
func (c *config) knownHost(h string) bool {
	if _, ok := c.hosts[h]; ok {
		return !strings.Contains(h, ":") // a bare IPv6 address is no Host
	}
	name := h
	if i := strings.LastIndexByte(h, ':'); i >= 0 && !strings.HasSuffix(h, "]") {
		if n, ok := plainNumber(h[i+1:]); !ok || n > 65535 {
			return false
		}
		name = h[:i]
	}
	if len(name) > 2 && name[0] == '[' && name[len(name)-1] == ']' {
		name = name[1 : len(name)-1]
	} else if strings.Contains(name, ":") {
		return false
	}
	if _, ok := c.hosts[name]; ok {
		return true
	}
	_, ok := c.hosts[strings.ToLower(name)]
	return ok
}

// pathOf is a target without its query.
func pathOf(target string) string {
	path, _, _ := strings.Cut(target, "?")
	return path
}
