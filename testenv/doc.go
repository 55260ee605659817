// Package testenv is a whole Hallpass in one process, for tests: ours, and
// those of anyone who puts a proxy next to a service.
//
// Nothing in it is a double. Start makes an offline certificate authority in a
// temporary folder, has it sign three nodes, and runs their real control
// servers with real Raft, TLS and bbolt on loopback. A proxy added with
// Env.Proxy is the real data plane in front of whatever upstream the test
// names, and a grant made with Env.Grant went through a request, an approval
// and a mint like anyone's.
//
//	env := testenv.Start(t, testenv.Options{Policy: policy})
//	up := env.HTTPUpstream(handler)
//	proxy := env.Proxy("payments", testenv.ProxyOptions{Upstream: up})
//	cert := env.Grant("alice", "payments", time.Minute, "GET /accounts/**")
//	resp, err := env.HTTPClient(proxy, cert).Get(proxy.URL("/accounts/42"))
//
// Env.Nginx is the exception to "in one process": an upstream, or a front, that
// is other people's program. FolderOf gives such programs a certificate as files.
//
// Faults are methods: Node.Kill ends a control node without a word to the
// others, Node.Start brings it back on its old files, Proxy.Stop and
// Proxy.Start do the same for a proxy.
//
// CheckInvariants asks of everything that happened so far whether it may have:
// each node's state is checked against all of the design's invariants, the nodes
// must agree, and every certificate that a test was handed must have been
// committed, byte for byte, before it was signed. Start registers it, so every
// test ends with it.
package testenv
