// Package api is the control plane's HTTP API: the JSON on the wire, the
// handlers, the OpenAPI document made from them, and the Go client.
//
//	client ─mTLS─► control (who is this?) ─► api.Handler (what is asked?) ─► Backend (may it happen?)
//
// The package knows HTTP and JSON and nothing else. It opens no socket on the
// server side, holds no state and decides nothing: the caller's identity comes
// in the request's context, put there by whoever terminated TLS, and every
// call goes to a [Backend], which the control node implements. A handler
// without a caller in its context answers 401, so a server that forgets to
// authenticate serves nobody.
//
// What it refuses, before a Backend hears of it: bodies over 64 KiB, bodies
// that are not JSON, members that are unknown, doubled or spelled in another
// case (two parsers could read them in two ways), unknown query parameters,
// methods and media types that a route does not have. Every refusal and every
// error is problem+json with a code for programs, a sentence for people, the
// next thing to do, and the ids under which the server logged it. The text of
// errors that are not ours never leaves.
//
// Every POST takes an Idempotency-Key. The key and the hash of the body go to
// the Backend, which remembers them in replicated state: the same key and body
// gives the same answer on any node, another body is refused.
//
// The [Client] takes several servers, tries the next when one cannot answer,
// and repeats a POST only under the key it first sent, so that a failover in
// the middle of a request never asks twice.
package api
