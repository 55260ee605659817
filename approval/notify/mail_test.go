package notify

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"maps"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net"
	"net/http/httptest"
	"net/mail"
	"net/textproto"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
)

// post is a mail server that keeps what it is sent.
type post struct {
	mu   sync.Mutex
	from []string
	to   []string
	mail [][]byte
	user string
	deny error // of RCPT
}

func (p *post) NewSession(*smtp.Conn) (smtp.Session, error) { return &postSession{p}, nil }

type postSession struct{ p *post }

func (s *postSession) Reset()        {}
func (s *postSession) Logout() error { return nil }

func (s *postSession) AuthMechanisms() []string { return []string{sasl.Plain} }

func (s *postSession) Auth(string) (sasl.Server, error) {
	return sasl.NewPlainServer(func(_, user, password string) error {
		s.p.mu.Lock()
		defer s.p.mu.Unlock()
		if password != "open sesame" {
			return errors.New("no")
		}
		s.p.user = user
		return nil
	}), nil
}

func (s *postSession) Mail(from string, _ *smtp.MailOptions) error {
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	s.p.from = append(s.p.from, from)
	return nil
}

func (s *postSession) Rcpt(to string, _ *smtp.RcptOptions) error {
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	s.p.to = append(s.p.to, to)
	return s.p.deny
}

func (s *postSession) Data(r io.Reader) error {
	text, err := io.ReadAll(r)
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	s.p.mail = append(s.p.mail, text)
	return err
}

// certificate is one for 127.0.0.1, and who is to trust it.
func certificate(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	s := httptest.NewTLSServer(nil)
	defer s.Close()
	pool := x509.NewCertPool()
	pool.AddCert(s.Certificate())
	return s.TLS.Certificates[0], pool
}

// postOffice runs a mail server; with STARTTLS where there is a certificate.
func postOffice(t *testing.T, p *post, cert *tls.Certificate) string {
	t.Helper()
	s := smtp.NewServer(p)
	s.ErrorLog = discard{}
	if cert != nil {
		s.TLSConfig = &tls.Config{Certificates: []tls.Certificate{*cert}, MinVersion: tls.VersionTLS12}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	return l.Addr().String()
}

type discard struct{}

func (discard) Printf(string, ...any) {}
func (discard) Println(...any)        {}

func mailTarget(t *testing.T, server string, roots *x509.CertPool, change func(m *Mail)) *Target {
	t.Helper()
	m := Mail{Server: server, From: "Hallpass <hallpass@acme.test>", To: []string{"owners@acme.test", "Security <sec@acme.test>"}}
	if change != nil {
		change(&m)
	}
	target, err := NewTarget(TargetConfig{Name: "mail", Kind: KindMail, Mail: m, Roots: roots, Timeout: 5 * time.Second}, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	return target
}

// parts reads a mail: its header, its plain text and its HTML.
func parts(t *testing.T, raw []byte) (h mail.Header, text, html string) {
	t.Helper()
	m, err := mail.ReadMessage(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	_, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil {
		t.Fatal(err)
	}
	r := multipart.NewReader(m.Body, params["boundary"])
	for {
		p, err := r.NextRawPart()
		if errors.Is(err, io.EOF) {
			return m.Header, text, html
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(quotedprintable.NewReader(p))
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(p.Header.Get("Content-Type"), "text/html") {
			html = string(body)
		} else {
			text = strings.ReplaceAll(string(body), "\r\n", "\n")
		}
	}
}

// TestMail: what a person wrote is text wherever it stands: no header, no recipient, no
// field of the message and no HTML comes of it. What is sent again is the same message.
func TestMail(t *testing.T) {
	cert, roots := certificate(t)
	p := &post{}
	target := mailTarget(t, postOffice(t, p, &cert), roots, func(m *Mail) { m.User, m.Password = "hallpass", "open sesame" })
	d := delivery()
	d.Request.Service = "payments\r\nBcc: eve@evil.test\r\n\r\nbody"
	d.Actor = "spiffe://acme.test/user/alice\nX-Evil: yes"
	d.Request.Reason = badReason + "\nservice: admin"
	for range 2 {
		if err := target.channel.Send(t.Context(), d); err != nil {
			t.Fatal(err)
		}
	}
	if want := []string{"owners@acme.test", "sec@acme.test", "owners@acme.test", "sec@acme.test"}; !slices.Equal(p.to, want) || p.user != "hallpass" || p.from[0] != "hallpass@acme.test" {
		t.Errorf("to %q from %q as %q", p.to, p.from, p.user)
	}
	if len(p.mail) != 2 {
		t.Fatalf("%d mails", len(p.mail))
	}
	h, text, html := parts(t, p.mail[0])
	again, text2, html2 := parts(t, p.mail[1])
	if id := h.Get("Message-Id"); id != "<"+d.ID+"@acme.test>" || again.Get("Message-Id") != id || again.Get("Date") != h.Get("Date") || text != text2 || html != html2 {
		t.Errorf("message %s, and again as %s", id, again.Get("Message-Id"))
	}
	names := slices.Sorted(maps.Keys(h))
	if want := []string{"Auto-Submitted", "Content-Type", "Date", "From", "Message-Id", "Mime-Version", "References", "Subject", "To", "User-Agent", "X-Mailer"}; !slices.Equal(names, want) {
		t.Errorf("headers %q", names)
	}
	subject, err := new(mime.WordDecoder).DecodeHeader(h.Get("Subject"))
	if err != nil || strings.ContainsAny(subject, "\r\n") || !strings.HasPrefix(subject, "[hallpass] ") || len(subject) > maxTitle+20 {
		t.Errorf("subject %q, %v", subject, err)
	}
	if strings.Contains(html, "<script") || !strings.Contains(html, "&lt;script&gt;") || strings.Contains(html, `href="https://evil`) || !strings.Contains(html, `href="`+d.Link+`"`) {
		t.Error(html)
	}
	if strings.Contains(html, "<form") || strings.Contains(html, "http-equiv") || strings.Contains(html, "<img") {
		t.Errorf("the mail does more than to be read: %s", html)
	}
	if strings.Contains(text, "\nservice: admin") || !strings.Contains(text, "\n    service: admin") || !strings.Contains(text, d.Link) || !strings.Contains(text, "hallpass review show "+d.Request.ID) {
		t.Error(text)
	}
}

// TestMailNeedsTLS: a server that does not offer TLS, or is not the one that was meant,
// is sent nothing.
func TestMailNeedsTLS(t *testing.T) {
	cert, roots := certificate(t)
	plain, strange := &post{}, &post{}
	for name, target := range map[string]*Target{
		"no STARTTLS":           mailTarget(t, postOffice(t, plain, nil), roots, nil),
		"no TLS at all":         mailTarget(t, postOffice(t, plain, nil), roots, func(m *Mail) { m.TLS = MailImplicit }),
		"another's certificate": mailTarget(t, postOffice(t, strange, &cert), x509.NewCertPool(), nil),
	} {
		if err := target.channel.Send(t.Context(), delivery()); err == nil {
			t.Errorf("%s: sent", name)
		}
	}
	if len(plain.from)+len(strange.from)+len(plain.mail)+len(strange.mail) > 0 {
		t.Errorf("a server that was not to be trusted was sent %q, %q", plain.from, strange.from)
	}
	office := smtp.NewServer(strange)
	office.ErrorLog = discard{}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12})
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = office.Serve(l) }()
	t.Cleanup(func() { _ = office.Close() })
	implicit := func(m *Mail) { m.TLS, m.User, m.Password = MailImplicit, "hallpass", "open sesame" }
	if err := mailTarget(t, l.Addr().String(), roots, implicit).channel.Send(t.Context(), delivery()); err != nil || strange.user != "hallpass" {
		t.Errorf("TLS from the first byte on: %v, as %q", err, strange.user)
	}
	if err := mailTarget(t, postOffice(t, plain, nil), nil, func(m *Mail) { m.TLS = MailNone }).channel.Send(t.Context(), delivery()); err != nil {
		t.Errorf("on loopback, and it is said: %v", err)
	}
}

// TestMailEndsInTime: a server that says nothing, at whatever point, holds a delivery for
// its time and no longer; one that hangs up after it has taken the message has it.
func TestMailEndsInTime(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = silent.Close() })
	rude, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = rude.Close() })
	go func() {
		for {
			c, err := rude.Accept()
			if err != nil {
				return
			}
			lines := textproto.NewConn(c)
			_ = lines.PrintfLine("220 rude.test")
			for {
				line, err := lines.ReadLine()
				if err != nil {
					break
				}
				if !strings.HasPrefix(line, "DATA") {
					_ = lines.PrintfLine("250 ok")
					continue
				}
				_ = lines.PrintfLine("354 go on")
				_, _ = lines.ReadDotBytes()
				_ = lines.PrintfLine("250 it is here")
				break
			}
			_ = c.Close()
		}
	}()
	plain := func(m *Mail) { m.TLS = MailNone }
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	start := time.Now()
	err = mailTarget(t, silent.Addr().String(), nil, plain).channel.Send(ctx, delivery())
	if took := time.Since(start); err == nil || err.Error() != "no answer in time" || took > 4*time.Second {
		t.Errorf("%v after %s", err, took)
	}
	if err := mailTarget(t, rude.Addr().String(), nil, plain).channel.Send(t.Context(), delivery()); err != nil {
		t.Errorf("what was taken is sent again: %v", err)
	}
}

// TestMailCauses: of what a server says, the number is kept.
func TestMailCauses(t *testing.T) {
	cert, roots := certificate(t)
	p := &post{deny: &smtp.SMTPError{Code: 550, EnhancedCode: smtp.EnhancedCode{5, 1, 1}, Message: "no such user \x1b[2J open sesame"}}
	address := postOffice(t, p, &cert)
	err := mailTarget(t, address, roots, nil).channel.Send(t.Context(), delivery())
	var f *Failure
	if !errors.As(err, &f) || !strings.Contains(f.Cause, "550") || strings.Contains(f.Cause, "such user") || f.Permanent {
		t.Errorf("%+v", f)
	}
	err = mailTarget(t, address, roots, func(m *Mail) { m.User, m.Password = "hallpass", "wrong-password" }).channel.Send(t.Context(), delivery())
	if !errors.As(err, &f) || strings.Contains(f.Cause, "wrong-password") {
		t.Errorf("%+v", f)
	}
}

// TestMailRefuses what cannot be meant.
func TestMailRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		change func(m *Mail)
		field  string
	}{
		"no port":                  {func(m *Mail) { m.Server = "mail.test" }, "server"},
		"no host":                  {func(m *Mail) { m.Server = ":25" }, "server"},
		"no TLS elsewhere":         {func(m *Mail) { m.TLS = MailNone }, "tls"},
		"another TLS":              {func(m *Mail) { m.TLS = "maybe" }, "tls"},
		"a user without a word":    {func(m *Mail) { m.User = "u" }, "user"},
		"nobody from":              {func(m *Mail) { m.From = "" }, "from"},
		"a header in an address":   {func(m *Mail) { m.From = "a@acme.test\r\nBcc: b@evil.test" }, "from"},
		"nobody to":                {func(m *Mail) { m.To = nil }, "to"},
		"a header among addresses": {func(m *Mail) { m.To = []string{"a@acme.test\r\nBcc: b@evil.test"} }, "to"},
		"too many":                 {func(m *Mail) { m.To = slices.Repeat([]string{"a@acme.test"}, maxRecipients+1) }, "to"},
	} {
		m := Mail{Server: "mail.test:25", From: "a@acme.test", To: []string{"b@acme.test"}}
		c.change(&m)
		var f *FieldError
		if _, err := NewTarget(TargetConfig{Name: "mail", Kind: KindMail, Mail: m}, time.Now); !errors.As(err, &f) || f.Field != c.field {
			t.Errorf("%s: %v, want it at %s", name, err, c.field)
		}
	}
}
