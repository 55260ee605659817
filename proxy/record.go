package proxy

import (
	"strconv"
	"time"
	"unicode/utf8"
)

// The kinds of access record.
const (
	kindRequest    = "request"
	kindConnection = "connection"
	kindHandshake  = "handshake"
	kindRenewal    = "renewal"
	kindGap        = "gap"
	kindQuery      = "query"  // one statement of a postgres session
	kindCancel     = "cancel" // somebody asked for a postgres session's statement to be cancelled
)

// What the proxy decided.
const (
	decisionAllow  = "allow"  // it went to the upstream
	decisionDeny   = "deny"   // well-formed, and not allowed
	decisionRefuse = "refuse" // malformed, or not who may connect
)

// record is one line of the access log. Empty fields are left out.
type record struct {
	time       time.Time
	kind       string
	event      string // "open" for what is still under way, else "end"
	conn       uint64
	service    string
	subject    string
	grant      string
	issuer     string
	serial     string
	emergency  bool // an emergency issuer signed the certificate
	permission string
	rule       string // the standing rule that allowed it, where no grant did
	wouldDeny  string // why enforcing would have refused it, where that is observed
	decision   string
	reason     string
	protocol   string
	method     string
	path       string // as on the wire: escaped, without query
	status     int
	bytesIn    int64
	bytesOut   int64
	duration   time.Duration
	requests   int64
	missed     int64 // of a gap: records that could not be written
	peer       string
	trace      string

	// Of postgres.
	database    string
	role        string
	query       string // its text, or what of it is recorded
	fingerprint string
	queryBytes  int // the whole message's, however much of it is in query
}

// of copies whose connection it was.
func (r *record) of(a *admission) {
	if a == nil {
		return
	}
	r.subject, r.grant, r.issuer, r.serial = a.subject, a.grantID, a.issuer, a.serial
	r.emergency = a.emergency
}

// appendTo appends the record as one JSON line.
func (r *record) appendTo(b []byte) []byte {
	b = append(b, `{"time":"`...)
	b = r.time.UTC().AppendFormat(b, "2006-01-02T15:04:05.000Z07:00")
	b = append(b, '"')
	b = appendField(b, "kind", r.kind)
	b = appendField(b, "event", r.event)
	b = appendNumber(b, "conn", int64(r.conn))
	b = appendField(b, "service", r.service)
	b = appendField(b, "subject", r.subject)
	b = appendField(b, "grant", r.grant)
	b = appendField(b, "issuer", r.issuer)
	b = appendField(b, "serial", r.serial)
	if r.emergency {
		b = append(b, `,"emergency":true`...)
	}
	b = appendField(b, "permission", r.permission)
	b = appendField(b, "rule", r.rule)
	b = appendField(b, "decision", r.decision)
	b = appendField(b, "reason", r.reason)
	b = appendField(b, "would_deny", r.wouldDeny)
	b = appendField(b, "protocol", r.protocol)
	b = appendField(b, "method", r.method)
	b = appendField(b, "path", r.path)
	b = appendField(b, "database", r.database)
	b = appendField(b, "role", r.role)
	b = appendField(b, "query", r.query)
	b = appendField(b, "fingerprint", r.fingerprint)
	b = appendNumber(b, "query_bytes", int64(r.queryBytes))
	b = appendNumber(b, "status", int64(r.status))
	b = appendNumber(b, "requests", r.requests)
	b = appendNumber(b, "missed", r.missed)
	if r.kind == kindRequest || r.kind == kindConnection {
		b = append(b, `,"bytes_in":`...)
		b = strconv.AppendInt(b, r.bytesIn, 10)
		b = append(b, `,"bytes_out":`...)
		b = strconv.AppendInt(b, r.bytesOut, 10)
		b = append(b, `,"duration_ms":`...)
		b = strconv.AppendFloat(b, float64(r.duration.Microseconds())/1000, 'f', 3, 64)
	}
	b = appendField(b, "peer", r.peer)
	b = appendField(b, "trace_id", r.trace)
	return append(b, '}', '\n')
}

func appendNumber(b []byte, name string, v int64) []byte {
	if v == 0 {
		return b
	}
	b = append(b, ',', '"')
	b = append(b, name...)
	b = append(b, '"', ':')
	return strconv.AppendInt(b, v, 10)
}

func appendField(b []byte, name, value string) []byte {
	if value == "" {
		return b
	}
	b = append(b, ',', '"')
	b = append(b, name...)
	b = append(b, '"', ':', '"')
	b = appendEscaped(b, value)
	return append(b, '"')
}

const hexDigits = "0123456789abcdef"

// appendEscaped writes everything but plain ASCII as an escape. A record is read
// in terminals and by tools that split lines in their own way: no byte that a
// peer chose may end a line, move a cursor or turn the text around.
func appendEscaped(b []byte, s string) []byte {
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
			i++
		case c >= 0x20 && c < 0x7f:
			b = append(b, c)
			i++
		case c < utf8.RuneSelf:
			b = appendUnit(b, uint16(c))
			i++
		default:
			r, n := utf8.DecodeRuneInString(s[i:])
			if r >= 0x10000 {
				r -= 0x10000
				b = appendUnit(b, uint16(0xd800+(r>>10)))
				b = appendUnit(b, uint16(0xdc00+(r&0x3ff)))
			} else {
				b = appendUnit(b, uint16(r))
			}
			i += n
		}
	}
	return b
}

func appendUnit(b []byte, u uint16) []byte {
	return append(b, '\\', 'u', hexDigits[u>>12], hexDigits[u>>8&15], hexDigits[u>>4&15], hexDigits[u&15])
}
