package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/ca"
)

// fake is a control node that answers what a test says, over real mTLS. It shows what the
// commands make of an answer; that the answers are right is the cluster's own tests' business.
type fake struct {
	*httptest.Server
	mux      *http.ServeMux
	offline  string // the folder of ca init
	identity string // alice's folder
}

func newFake(t *testing.T) *fake {
	t.Helper()
	f := &fake{mux: http.NewServeMux(), offline: filepath.Join(t.TempDir(), "ca")}
	td := spiffeid.RequireTrustDomainFromString("acme.test")
	if err := ca.Init(f.offline, ca.InitOptions{TrustDomain: td, Admins: []string{"bob", "carol", "dana"}, Now: time.Now()}); err != nil {
		t.Fatal(err)
	}
	f.identity = f.issue(t, "user/alice")
	node := f.issue(t, "node/n1", "--ip", "127.0.0.1")
	cert, err := tls.LoadX509KeyPair(filepath.Join(node, ca.FolderChain), filepath.Join(node, ca.FolderKey))
	if err != nil {
		t.Fatal(err)
	}
	root, err := readCertificate(filepath.Join(f.offline, "identity-root.crt"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(root)
	f.Server = httptest.NewUnstartedServer(f.mux)
	f.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots, MinVersion: tls.VersionTLS13}
	f.EnableHTTP2 = true
	f.StartTLS()
	t.Cleanup(f.Close)
	return f
}

// issue makes an identity folder with the offline root.
func (f *fake) issue(t *testing.T, id string, more ...string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "id")
	args := append([]string{"identity", "issue", id, "--root", f.offline, "--out", dir}, more...)
	if got := run(t, nil, args...); got.status != exitOK {
		t.Fatalf("hallpass %s: %+v", strings.Join(args, " "), got)
	}
	return dir
}

// answer makes the fake answer a route with value.
func (f *fake) answer(route string, status int, value any) {
	f.mux.HandleFunc(route, func(w http.ResponseWriter, _ *http.Request) { reply(w, status, value) })
}

func reply(w http.ResponseWriter, status int, value any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Hallpass-Index", "7")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(value) // the client tells when it did not get it
}

// ran is what a command line came to.
type ran struct {
	status         int
	stdout, stderr string
}

// run runs a command line in this process, with the environment env.
func run(t *testing.T, env []string, args ...string) ran {
	t.Helper()
	var out, errs bytes.Buffer
	a := &app{
		stdin: strings.NewReader(""), stdout: &out, stderr: &errs,
		environ: func() []string { return env }, now: time.Now,
	}
	status := a.run(t.Context(), args)
	return ran{status, out.String(), errs.String()}
}

// as runs a command line against the fake.
func (f *fake) as(t *testing.T, identity string, args ...string) ran {
	t.Helper()
	env := []string{"HALLPASS_SERVER=" + f.URL, "HALLPASS_IDENTITY=" + identity}
	return run(t, env, append(args, "--timeout", "1ms")...)
}

// request is a pending request of alice's.
func request(change func(*api.Request)) api.Request {
	r := api.Request{
		ID: "01a20afa-e731-7f26-a3d8-3e7dc7f78185", State: api.RequestPending,
		Requester: "spiffe://acme.test/user/alice", Subject: "spiffe://acme.test/user/alice", RequesterPerson: "alice",
		Service: "payments", Permissions: []string{"GET /accounts/**"}, Reason: "ticket 4711",
		Duration: api.Duration(30 * time.Minute), CreatedAt: time.Now(), ExpiresAt: time.Now().Add(time.Hour), Hash: "66a7",
		Rules: []string{"payments-read"}, Require: []api.Requirement{{Group: "payments-owners", Approvals: 1}},
	}
	if change != nil {
		change(&r)
	}
	return r
}

func closedAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }() // its address is what is wanted
	return l.Addr().String()
}
