package proxy

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// matrixTTL is how long the certificates live that are meant to end.
const matrixTTL = 4 * time.Second

// cellAdmit: what the certificate allows, and one record of it under its grant.
func cellAdmit(_ *testing.T, m *matrixProxy, row matrixRow) func(*env) string {
	id := newGrantID(m.t)
	got := row.once(m.env, m.pki.grantWithID(id, time.Hour, row.perm))
	return func(e *env) string {
		r := e.record("it", func(r logLine) bool { return r.Grant == id && r.Event == "end" && r.Permission != "" })
		if r.Decision != decisionAllow || r.Reason != "" {
			return fmt.Sprintf("%s, and a record %+v", got, r)
		}
		return got
	}
}

// cellScope: a grant for this service, of something else.
func cellScope(_ *testing.T, m *matrixProxy, row matrixRow) func(*env) string {
	id := newGrantID(m.t)
	got := row.once(m.env, m.pki.grantWithID(id, time.Hour, row.other))
	return func(e *env) string {
		r := e.record("it", func(r logLine) bool { return r.Grant == id && r.Decision == decisionDeny })
		return got + ", `" + r.Reason + "`"
	}
}

// cellExpiry: NotAfter comes while it runs.
func cellExpiry(_ *testing.T, m *matrixProxy, row matrixRow) func(*env) string {
	id := newGrantID(m.t)
	cert := m.pki.grantWithID(id, matrixTTL, row.perm)
	ended := m.run(row, cert)
	return func(e *env) string {
		return m.end(e, ended, cert.Leaf.NotAfter, id, reasonExpired, "NotAfter")
	}
}

// cellRevoke: its grant is revoked while it runs; and then opens nothing.
func cellRevoke(_ *testing.T, m *matrixProxy, row matrixRow) func(*env) string {
	id := newGrantID(m.t)
	cert := m.pki.grantWithID(id, time.Hour, row.perm)
	ended := m.run(row, cert)
	return func(e *env) string {
		at := time.Now()
		m.node.revoke(id)
		got := m.end(e, ended, at, id, reasonRevoked, "the news")
		return got + "; then " + row.once(e, cert)
	}
}

// cellRenew: a second certificate of the same grant. It opens connections of its
// own, which outlive the first one's.
func cellRenew(_ *testing.T, m *matrixProxy, row matrixRow) func(*env) string {
	id := newGrantID(m.t)
	first := m.pki.grantWithID(id, matrixTTL, row.perm)
	old := m.run(row, first)
	renewed := m.pki.grantWithID(id, time.Hour, row.perm)
	with := m.run(row, renewed)
	return func(e *env) string {
		end := m.end(e, old, first.Leaf.NotAfter, id, reasonExpired, "its NotAfter")
		select {
		case b := <-with:
			return fmt.Sprintf("the new connection ended too: %v", b.err)
		default:
		}
		at := time.Now()
		m.node.revoke(id)
		if cut := m.end(e, with, at, id, reasonRevoked, "the news"); !strings.HasPrefix(cut, "broken off ≤ 1 s") {
			return "the new connection: " + cut
		}
		return "new connections live on; the old one is " + end
	}
}

// cellConnect: the same behind `hallpass connect`, which proves each renewed
// certificate on the connection that there is. Three of them end while it goes on.
func cellConnect(_ *testing.T, m *matrixProxy, row matrixRow) func(*env) string {
	r := m.renewing(150*time.Minute, row.perm)
	talk := row.carried(m.env, r.listen(func(c *ConnectorConfig) { c.TCP = m.settings.Protocol != "" }))
	return func(e *env) string {
		r.env = e
		r.live3(talk)
		if n := e.px.live.len(); n != 1 {
			return fmt.Sprintf("%d connections to the proxy", n)
		}
		ended := make(chan brokenOff, 1)
		go func() { // ends with the grant
			err := talkUntilBroken(talk)
			ended <- brokenOff{time.Now(), err}
		}()
		e.clock.moveOn(r.end.Sub(e.clock.now()) - time.Second/2)
		due := time.Now().Add(r.end.Sub(e.clock.now()))
		return "lives on through three renewals, " + m.end(e, ended, due, r.id, reasonExpired, "the grant's end")
	}
}

// cellDead: every control node is gone. What runs goes on, what comes is admitted,
// and both end with their certificates.
func cellDead(_ *testing.T, m *matrixProxy, row matrixRow) func(*env) string {
	id := newGrantID(m.t)
	cert := m.pki.grantWithID(id, matrixTTL, row.perm)
	ended := m.run(row, cert)
	m.node.stop()
	return func(e *env) string {
		fresh := row.once(e, m.pki.grant(time.Hour, row.perm))
		end := m.end(e, ended, cert.Leaf.NotAfter, id, reasonExpired, "NotAfter")
		return "new connections: " + fresh + "; what runs goes on, " + end
	}
}
