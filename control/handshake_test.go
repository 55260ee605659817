package control

import (
	"crypto/tls"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallpass/hallpass/ca"
)

func chainHeader(cert tls.Certificate) string {
	return base64.StdEncoding.EncodeToString(cert.Certificate[0])
}

// TestWhoCompletesTheHandshake: identities of the cluster's trust domain, over
// TLS 1.3, and nobody else.
func TestWhoCompletesTheHandshake(t *testing.T) {
	t.Parallel()
	c := newCluster(t, func(cfg *Config) { cfg.Limits.Header = time.Second })
	url := c.live()[0].url()
	other := filepath.Join(t.TempDir(), "other")
	must(t, ca.Init(other, ca.InitOptions{
		TrustDomain: spiffeid.RequireTrustDomainFromString("acme.test"), Admins: []string{"ann", "ben", "cid"},
	}))
	foreign := (&offline{dir: other}).identity(t, "spiffe://acme.test/user/ann")
	good := c.identity(t, "spiffe://acme.test/user/ann")
	stolen := good // the certificate without its key
	stolen.PrivateKey = foreign.PrivateKey
	for name, conf := range map[string]*tls.Config{
		"no certificate":     {},
		"another root":       {Certificates: []tls.Certificate{foreign}},
		"a certificate only": {Certificates: []tls.Certificate{stolen}},
		"TLS 1.2":            {Certificates: []tls.Certificate{good}, MaxVersion: tls.VersionTLS12},
	} {
		conf.RootCAs = c.roots()
		tr := &http.Transport{TLSClientConfig: conf}
		if resp, err := (&http.Client{Transport: tr}).Get(url + "/v1/bundle"); err == nil {
			_ = resp.Body.Close()
			t.Errorf("%s: %s", name, resp.Status)
		}
		tr.CloseIdleConnections()
	}
	if !strings.Contains(c.logs.String(), "reason=untrusted") {
		t.Error("the log does not say that the root is another")
	}
	conf := &tls.Config{RootCAs: c.roots(), Certificates: []tls.Certificate{good}, MinVersion: tls.VersionTLS13}
	t.Run("slow header", func(t *testing.T) { slowHeader(t, url, conf) })
	t.Run("silent", func(t *testing.T) { silent(t, url) })
	t.Run("long header", func(t *testing.T) { longHeader(t, url, conf) })
}

// slowHeader sends a header that never ends.
func slowHeader(t *testing.T, url string, conf *tls.Config) {
	conf = conf.Clone()
	conf.NextProtos = []string{"http/1.1"}
	conn, err := tls.Dial("tcp", strings.TrimPrefix(url, "https://"), conf)
	must(t, err)
	defer func() { _ = conn.Close() }()
	_, err = io.WriteString(conn, "GET /v1/whoami HTTP/1.1\r\nHost: x\r\nX-Slow: ")
	must(t, err)
	must(t, conn.SetReadDeadline(time.Now().Add(30*time.Second)))
	answer, err := io.ReadAll(conn)
	if strings.HasPrefix(string(answer), "HTTP/1.1 2") {
		t.Errorf("answered with %q", answer)
	}
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		t.Error("the connection was left open")
	}
}

// silent connects and says nothing.
func silent(t *testing.T, url string) {
	conn, err := net.Dial("tcp", strings.TrimPrefix(url, "https://"))
	must(t, err)
	defer func() { _ = conn.Close() }()
	must(t, conn.SetReadDeadline(time.Now().Add(30*time.Second)))
	if _, err := conn.Read(make([]byte, 1)); err != io.EOF { //nolint:errorlint // Read gives it bare
		t.Errorf("a connection without a handshake ended with %v", err)
	}
}

// longHeader sends more header than is read.
func longHeader(t *testing.T, url string, conf *tls.Config) {
	tr := &http.Transport{TLSClientConfig: conf.Clone()}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+"/v1/whoami", nil)
	must(t, err)
	req.Header.Set("X-Long", strings.Repeat("x", 64<<10))
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		return // cut off is as good
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("got %s", resp.Status)
	}
}
