// Package proxy is the data plane: an mTLS proxy that stands next to a service
// and admits exactly what a grant certificate says, until it expires; and the
// Connector, the client's end of it, for programs that know nothing of certificates.
//
// # Duty
//
// A Proxy needs a client's certificate, its own bundles and its own settings, and
// asks nobody. With every control node dead, live grants go on working and die on
// time. What it hears of revocations makes it refuse more, never less.
//
//	          handshake.go           gate.go        screen.go      exchange.go          forward.go, tunnel.go
//	client ─► TLS 1.3, examine ─┬─► HTTP/1 bytes ─► one reading ─► time? revoked? ──┬─► upstream
//	          (verify.go)       ├─► HTTP/2 ───────►                 scope?          └─► 403 and the command to ask
//	             │              └─► tcp ──────────────────────────► scope? ───────────► upstream
//	             ▼                                                                        │
//	          live.go: who is connected, until when ── cut at NotAfter, on revocation ────┤
//	          record.go, accesslog.go: one record of each ◄────────────────────────────────┘
//
// # Trust boundary
//
// Everything that comes from a client is hostile, one that holds a grant
// included: it may try to reach beyond its scope, to be taken for another, to
// stay past its time, to act unrecorded, or to have one request read as two. The
// upstream is trusted to serve and not to decide: what it answers is copied, and
// its trailers and upgrade headers are checked only so far as they touch us. Of
// control nodes, only those of the identity trust domain under /node/ are heard.
//
// # What is refused, and where
//
//   - In the handshake, by an alert: any certificate but a grant for this service
//     or an identity of the trust domain. Identities are verified with the identity
//     bundle, grants with the grants bundle; the two are never pooled. The name is
//     read from the certificate's bytes, so that there is one spelling of it. All
//     of this is in VerifyConnection and there are no session tickets: a resumed
//     session skips the other hooks.
//   - In the bytes of HTTP/1: everything that net/http repairs and another parser
//     may read otherwise. The gate stands before net/http for that.
//   - In a request, by 400: paths with two readings, headers that ask for another
//     method or path, upgrades but WebSocket, CONNECT and TRACE.
//   - By 403: an identity, which opens nothing by itself, and what the scope does
//     not cover. The answer names the smallest permission that would do.
//
// # Time
//
// A connection ends with the certificate it was proven with, on every protocol,
// with whatever is in flight: its socket is reset, so that a cut answer never
// looks like a whole one. The wall clock is what counts, and it is looked at four
// times a second, since timers stand still in a suspended laptop. Shortly before,
// clients are told to reconnect.
//
// # Trade-offs
//
// Records are written when a request ends, and once before if it lasts over a
// second: a proxy killed with SIGKILL loses the records of the last second's
// requests that had not ended. The end of a connection is recorded by a goroutine
// of its own, lest a disk that hangs keep others alive. Frames that break HTTP/2
// itself are answered by net/http and show only in a metric and in the
// connection's record. Answers of status 1xx but 101 are not passed on.
package proxy
