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
//	          handshake.go           one reading              exchange.go, frontask.go
//	client ─► TLS 1.3, examine ─┬─► HTTP/1: front*.go ───────► time? revoked? ──┬─► upstream (asking.go, backend.go, answerhead.go;
//	          (verify.go,       ├─► HTTP/2: net/http, screen.go    scope?       │   HTTP/2 by cross*.go, to h2c by forward.go)
//	          chaincache.go)    │                                               └─► 403 and the command to ask
//	             │              ├─► postgres ─► pgwire ───────────► scope? ─► login ──► upstream
//	             │              ├─► tcp ──────────────────────────► scope? ───────────► upstream
//	             │              └─► carrier.go: many of these in one connection, renewed in band (renewal.go)
//	             ▼                                                                        │
//	          live.go: who is connected, until when ── cut at NotAfter, on revocation ────┤
//	          record.go, accesslog.go: one record of each ◄────────────────────────────────┘
//
// A Fleet is several Proxies in one process, and what changes their configuration
// while they run. What belongs to a configuration is in Proxy, and what outlives
// it, connections above all, in its core: a request is judged by the Proxy that is
// newest when it arrives.
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
//   - In the bytes of HTTP/1: everything that one parser repairs and another may
//     read otherwise. A front reads them itself; where the upstream speaks h2c, and on a
//     carrier's streams, which are net/http's, the gate stands before it with the same rules.
//   - In an HTTP/1 upstream's answer: what could be read as two answers, or as half
//     of one. It becomes a 502, or the connection breaks off.
//   - In a request, by 400: paths with two readings, headers that ask for another
//     method or path, upgrades but WebSocket, CONNECT and TRACE.
//   - By 403: an identity, which opens nothing by itself, and what the scope does
//     not cover. The answer names the smallest permission that would do.
//
// # Postgres
//
// A session is a login of the proxy's own as the role that the grant names (pgsession.go). Nothing in it is decided by
// reading SQL. That it stays that role's rests on the role having no other to become, which each session is asked before its
// client has it (pgrole.go); that it ends, on its backend being ended by another login of the role, since PostgreSQL lets SQL catch a
// cancel (pgupstream.go). A cut connection has half a second for the protocol's last word (parting.go).
//
// # Time
//
// A connection ends with the certificate that was proven on it last, on every protocol,
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
