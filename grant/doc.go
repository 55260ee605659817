// Package grant says what a grant opens: permissions, scopes, the SPIFFE ID that carries a
// scope in a certificate, and the decision whether a request lies within it.
//
// # One scope, three forms
//
// A scope is a service and what may be done there. People read and write it as text, programs
// hold it as a value, and a certificate carries it as the path of its one URI SAN:
//
//	"GET,HEAD /accounts/**"      ParseScope            NewID
//	"POST /refunds/*"         ───────────────▶ Scope ─────────▶ ID  spiffe://grants.acme.test/v1/payments
//	                          ◀───────────────   │   ◀─────────       /_can/http/GET.HEAD/accounts/_rest
//	  lenient when read,          Texts          │    ParseID         /_and/http/POST/refunds/_any
//	  canonical when written                     │                    /_for/acme.test/user/alice
//	                                             ▼                    /_id/0199f3a0-…
//	GET /accounts/7?v=2 ──ParsePath──▶ Path ──▶ Matcher ──▶ allowed, and by which permission
//
// [Permission], [Scope] and [ID] are opaque, comparable values: two are == exactly if they mean
// the same. Their zero values are invalid; they allow, cover and match nothing, and never mean
// "any".
//
// # What it refuses
//
// The trust boundary runs through ParseID and ParsePath. A SPIFFE ID comes from a certificate
// that was signed long before it is read, by a version of this package that may be older or
// newer; a target comes from whoever holds the certificate. Both are taken only if there is one
// way to read them:
//
//   - ParseID writes what it has read again and compares. An escape that was not needed, two
//     permissions in another order, two of one path, an unknown version, kind or token refuse
//     the whole ID, so that a tool that compares strings and one that compares scopes agree.
//   - ParsePath refuses dot segments, encoded slashes, backslashes, path parameters and all
//     else that some server behind the proxy may resolve, decode again or cut. Nothing is
//     cleaned: the path that was matched is the path that is forwarded, byte for byte.
//
// ParsePermission reads what people type. It does not mind the order of methods or how a
// character is escaped, but it does not guess: "get /a", "GET /a/{id}" and "GET /a?b" are
// errors that say what to write.
//
// # Deciding
//
// A [Matcher] is made once for a certificate and asked for each request; it allocates nothing.
// Policies compare permissions instead: Covers is sound (a true is always true) and Overlaps
// misses nothing (a false is always false), so that what a policy lets through is no more than
// it says, and what it denies no less.
//
// The grammar, the text form, the reading of paths, matching and containment are specified in
// SPEC.md, for others to implement; testdata/vectors.json goes with it.
package grant
