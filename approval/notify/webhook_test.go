package notify

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval"
)

// delivery is of a request whose reason is as bad as a reason can be.
func delivery() Delivery {
	e := Entry{
		Index: 41, Kind: approval.KindCreateRequest, Time: time.UnixMilli(1772355600000).UTC(), Actor: "spiffe://acme.test/user/alice",
		Object: "019ca8a0-3e80-7000-8000-000000000001", Command: "019ca8a0-3e80-7000-8000-000000000009", Details: json.RawMessage(`{"state":"pending"}`),
	}
	e.Body = json.RawMessage(`{"actor":"spiffe://acme.test/user/alice","kind":"request.create"}`)
	return Delivery{ID: DeliveryID("acme", e, "chat"), Event: Event{
		Entry: e, Cluster: "acme", TrustDomain: "acme.test", Link: "http://127.0.0.1:8700/requests/" + e.Object,
		Request: &Request{
			ID: e.Object, State: "pending", Requester: "spiffe://acme.test/user/alice", Subject: "spiffe://acme.test/user/alice", Service: "payments",
			Permissions: []string{"GET /accounts/**"}, DurationMS: 1800000, Reason: badReason, Hash: strings.Repeat("ab", 32),
		},
	}}
}

// badReason tries to be more than text in all the forms that it is put into.
const badReason = "see <script>alert(1)</script> & \"quotes\"\r\nBcc: all@acme.test\n\n<!channel> <https://evil.test|the request> *bold* [x](https://evil.test)"

func tlsServer(t *testing.T, h http.HandlerFunc) (*httptest.Server, *x509.CertPool) {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // some who call are to be refused
	s.StartTLS()
	t.Cleanup(s.Close)
	pool := x509.NewCertPool()
	pool.AddCert(s.Certificate())
	return s, pool
}

func key(t *testing.T, text string) SigningKey {
	t.Helper()
	k, err := ParseSigningKey(text)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

const secretText = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

// TestSignatureVector is the example of the Standard Webhooks libraries.
func TestSignatureVector(t *testing.T) {
	got := sign([]SigningKey{key(t, secretText)}, "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", []byte(`{"test": 2432232314}`))
	if want := "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// TestWebhook: a receiver that knows either key can check what it is sent, which is a
// CloudEvent of the audit entry.
func TestWebhook(t *testing.T) {
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	var got *http.Request
	var body []byte
	server, roots := tlsServer(t, func(_ http.ResponseWriter, r *http.Request) {
		got = r.Clone(context.WithoutCancel(r.Context()))
		body, _ = io.ReadAll(r.Body)
	})
	now := time.UnixMilli(1772355601000)
	target, err := NewTarget(TargetConfig{
		Name: "siem", Kind: KindWebhook, URL: server.URL + "/hooks/secret-path", Roots: roots,
		Keys: []SigningKey{key(t, secretText), key(t, "whsk_"+base64.StdEncoding.EncodeToString(private))},
	}, func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	d := delivery()
	if err := target.channel.Send(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	at := got.Header.Get("webhook-timestamp")
	if got.Header.Get("webhook-id") != d.ID || at != "1772355601" || got.Header.Get("Content-Type") != "application/cloudevents+json" {
		t.Errorf("%v", got.Header)
	}
	content := []byte(d.ID + "." + at + "." + string(body))
	signatures := strings.Fields(got.Header.Get("webhook-signature"))
	if len(signatures) != 2 || signatures[0] != key(t, secretText).sign(content) {
		t.Fatalf("%q", signatures)
	}
	raw, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(signatures[1], "v1a,"))
	if err != nil || !ed25519.Verify(public, content, raw) {
		t.Errorf("%q is not the ed25519 key's, %v", signatures[1], err)
	}
	var event struct {
		SpecVersion, ID, Source, Type, Subject string
		Time                                   time.Time
		DataContentType                        string
		Data                                   struct {
			Entry   json.RawMessage
			Request Request
			Link    string
		}
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&event); err != nil {
		t.Fatal(err)
	}
	if event.SpecVersion != "1.0" || event.ID != d.ID || event.Source != "spiffe://acme.test/hallpass/acme" || event.Type != "hallpass.request.create" ||
		event.Subject != d.Object || !event.Time.Equal(d.Time) || string(event.Data.Entry) != string(d.Body) || event.Data.Request.Reason != badReason || event.Data.Link != d.Link {
		t.Errorf("%+v", event)
	}
	if target.Host() != server.URL || strings.Contains(fmt.Sprintf("%v %+v %#v", target.channel, target.channel, key(t, secretText)), "MfKQ9r8") {
		t.Error("the address, or the key, is in what is said of the target")
	}
}

// TestWebhookAnswers: what a receiver answers decides on what comes next, and no more of
// it is believed or kept than its status.
func TestWebhookAnswers(t *testing.T) {
	var reached atomic.Int32
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached.Add(1) }))
	t.Cleanup(elsewhere.Close)
	now := time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC)
	for path, c := range map[string]struct {
		answer func(w http.ResponseWriter)
		want   Failure
	}{
		"/redirect": {func(w http.ResponseWriter) { w.Header().Set("Location", elsewhere.URL); w.WriteHeader(307) }, Failure{Cause: "answered 307 Temporary Redirect: redirects are not followed"}},
		"/gone":     {func(w http.ResponseWriter) { w.WriteHeader(410) }, Failure{Cause: "answered 410 Gone", Gone: true}},
		"/busy":     {func(w http.ResponseWriter) { w.Header().Set("Retry-After", "90"); w.WriteHeader(429) }, Failure{Cause: "answered 429 Too Many Requests", After: 90 * time.Second}},
		"/date": {func(w http.ResponseWriter) {
			w.Header().Set("Retry-After", "Sun, 01 Mar 2026 09:10:00 GMT")
			w.WriteHeader(503)
		}, Failure{Cause: "answered 503 Service Unavailable", After: 10 * time.Minute}},
		"/next-year": {func(w http.ResponseWriter) { w.Header().Set("Retry-After", "99999999999999"); w.WriteHeader(503) }, Failure{Cause: "answered 503 Service Unavailable", After: time.Hour}},
		"/past":      {func(w http.ResponseWriter) { w.Header().Set("Retry-After", "-5"); w.WriteHeader(503) }, Failure{Cause: "answered 503 Service Unavailable"}},
		"/words":     {func(w http.ResponseWriter) { http.Error(w, "\x1b[2Jyour secret is "+secretText, 500) }, Failure{Cause: "answered 500 Internal Server Error"}},
	} {
		server, roots := tlsServer(t, func(w http.ResponseWriter, _ *http.Request) { c.answer(w) })
		target, err := NewTarget(TargetConfig{Name: "siem", Kind: KindWebhook, URL: server.URL + path, Roots: roots, Keys: []SigningKey{key(t, secretText)}}, func() time.Time { return now })
		if err != nil {
			t.Fatal(err)
		}
		var f *Failure
		if err := target.channel.Send(t.Context(), delivery()); !errors.As(err, &f) || *f != c.want {
			t.Errorf("%s: %+v, want %+v", path, f, c.want)
		}
	}
	if reached.Load() > 0 {
		t.Error("a redirect was followed: a receiver had the node call where it liked")
	}
}

// TestNoAddressInCauses: what is behind a host lets one post in the target's name, and
// causes are in logs, answers and the audit log.
func TestNoAddressInCauses(t *testing.T) {
	endless, roots := tlsServer(t, func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			if _, err := w.Write(make([]byte, 1<<16)); err != nil {
				return
			}
		}
	})
	silent, silentRoots := tlsServer(t, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // or it is not noticed that the caller leaves
		<-r.Context().Done()
		panic(http.ErrAbortHandler) // returning would answer 200, which might still come to who is just leaving
	})
	closed := httptest.NewServer(nil)
	closed.Close()
	for name, c := range map[string]struct {
		url   string
		roots *x509.CertPool
		want  string // "" is success
	}{
		"nobody listens": {closed.URL, nil, "connection refused"},
		"a stranger":     {silent.URL, x509.NewCertPool(), "certificate"},
		"no answer":      {silent.URL, silentRoots, "no answer in time"},
		"without end":    {endless.URL, roots, ""},
	} {
		target, err := NewTarget(TargetConfig{
			Name: "siem", Kind: KindWebhook, URL: c.url + "/T000/secret-path?token=secret-query", Roots: c.roots, Keys: []SigningKey{key(t, secretText)},
		}, time.Now)
		if err != nil {
			t.Fatal(err)
		}
		limit := 30 * time.Second
		if c.want == "no answer in time" {
			limit = 2 * time.Second
		}
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		err = target.channel.Send(ctx, delivery())
		cancel()
		text := fmt.Sprint(err)
		if (err == nil) != (c.want == "") || !strings.Contains(text, c.want) || strings.Contains(text, "secret") || len(text) > approval.MaxCause {
			t.Errorf("%s: %s", name, text)
		}
	}
}

// TestTargetRefuses what cannot be meant, with the key that says it.
func TestTargetRefuses(t *testing.T) {
	good := TargetConfig{Name: "siem", Kind: KindWebhook, URL: "https://w.test/x", Keys: []SigningKey{key(t, secretText)}}
	for name, c := range map[string]struct {
		change func(c *TargetConfig)
		field  string
	}{
		"a name with a dot":   {func(c *TargetConfig) { c.Name = "si.em" }, "name"},
		"no kind":             {func(c *TargetConfig) { c.Kind = "" }, "kind"},
		"plain http":          {func(c *TargetConfig) { c.URL = "http://w.test/x" }, "url"},
		"a user":              {func(c *TargetConfig) { c.URL = "https://u:p@w.test/x" }, "url"},
		"a fragment":          {func(c *TargetConfig) { c.URL = "https://w.test/x#y" }, "url"},
		"a file":              {func(c *TargetConfig) { c.URL = "file:///etc/passwd" }, "url"},
		"a name for loopback": {func(c *TargetConfig) { c.URL = "http://localhost/x" }, "url"},
		"no key":              {func(c *TargetConfig) { c.Keys = nil }, "secret_files"},
		"an event of no kind": {func(c *TargetConfig) { c.Events = []string{"request.created"} }, "events"},
		"a family of no kind": {func(c *TargetConfig) { c.Events = []string{"requests.*"} }, "events"},
		"what is never told":  {func(c *TargetConfig) { c.Events = []string{"outbox.settle"} }, "events"},
		"an endless timeout":  {func(c *TargetConfig) { c.Timeout = time.Hour }, "timeout"},
		"tried for a year":    {func(c *TargetConfig) { c.GiveUp = 365 * 24 * time.Hour }, "give_up_after"},
	} {
		bad := good
		c.change(&bad)
		var f *FieldError
		if _, err := NewTarget(bad, time.Now); !errors.As(err, &f) || f.Field != c.field {
			t.Errorf("%s: %v, want it at %s", name, err, c.field)
		}
	}
	for _, text := range []string{"", "whsec_", "whsec_c2hvcnQ=", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsk_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_" + strings.Repeat("A", 200), "whsk_" + base64.StdEncoding.EncodeToString(make([]byte, 64))} {
		if _, err := ParseSigningKey(text); err == nil || len(text) > 8 && strings.Contains(err.Error(), text) {
			t.Errorf("key %q: %v", text, err)
		}
	}
	one, err := NewTarget(good, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(Config{Targets: []*Target{one, one}}); !errors.Is(err, errTwice) {
		t.Errorf("two targets of one name: %v", err)
	}
}

// TestDeliveryID: it is the same at every try, and another for another target, another
// cluster, or what is in the same place of the log after a restore.
func TestDeliveryID(t *testing.T) {
	e := delivery().Entry
	id := DeliveryID("acme", e, "chat")
	restored := e
	restored.Command = "019ca8a0-3e80-7000-8000-00000000000a"
	seen := map[string]bool{id: true}
	for _, other := range []string{DeliveryID("acme", e, "mail"), DeliveryID("other", e, "chat"), DeliveryID("acme", restored, "chat")} {
		if seen[other] {
			t.Errorf("%s twice", other)
		}
		seen[other] = true
	}
	e.Index++ // its place is no part of it
	if DeliveryID("acme", e, "chat") != id || len(id) != 36 {
		t.Error(id)
	}
	if tried := TestEvent("acme", "acme.test", "spiffe://acme.test/user/ada", time.Now()); len(tried.keys()) != 0 {
		t.Error("a test waits for something")
	}
	if _, err := (Delivery{ID: "test_1", Event: TestEvent("acme", "acme.test", "x", time.Now())}).CloudEvent(); err != nil {
		t.Error(err)
	}
}
