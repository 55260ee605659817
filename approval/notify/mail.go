package notify

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"html/template"
	"net"
	"net/netip"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/wneessen/go-mail"
)

// Mail is what a target of mail needs besides. go-mail is used in this file alone.
type Mail struct {
	Server   string // HOST:PORT
	TLS      MailTLS
	From     string   // an address, or "Name <address>"
	To       []string // each is sent the same message
	User     string   // "": no authentication
	Password string
}

// MailTLS says how the way to the server is protected.
type MailTLS string

// The ways. What is not encrypted may be read, and answered, by who is on the way.
const (
	MailStartTLS MailTLS = "starttls" // required: a server that does not offer it is sent nothing
	MailImplicit MailTLS = "implicit" // from the first byte on, as on port 465
	MailNone     MailTLS = "none"     // on loopback addresses alone
)

// maxRecipients is how many addresses one target has.
const maxRecipients = 50

// mailer sends one target's mail. The Message-ID is the delivery's: what is sent again
// after a leader died is the same message, and mail stores that know the id (RFC 5322
// §3.6.4 has it be unique) show it once.
type mailer struct {
	c      Mail
	host   string
	domain string      // of Message-IDs
	tls    *tls.Config // from the first byte on; nil: not so
	opts   []mail.Option
}

func (t *Target) mail(c TargetConfig) error {
	m := &mailer{c: c.Mail}
	host, port, err := net.SplitHostPort(c.Mail.Server)
	number, err2 := strconv.ParseUint(port, 10, 16)
	if err != nil || err2 != nil || number == 0 || host == "" {
		return &FieldError{"server", fmt.Sprintf("%q: want HOST:PORT", c.Mail.Server)}
	}
	m.host = host
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: host, RootCAs: c.Roots}
	m.opts = []mail.Option{mail.WithPort(int(number)), mail.WithTimeout(t.timeout), mail.WithHELO("localhost"), mail.WithTLSConfig(config)}
	auth := mail.SMTPAuthAutoDiscover
	switch c.Mail.TLS {
	case MailStartTLS, "":
		m.opts = append(m.opts, mail.WithTLSPolicy(mail.TLSMandatory))
	case MailImplicit:
		m.tls, auth = config, mail.SMTPAuthPlain
		m.opts = append(m.opts, mail.WithSSL())
	case MailNone:
		if ip, err := netip.ParseAddr(host); err != nil || !ip.IsLoopback() {
			return &FieldError{"tls", "none is for loopback addresses only: who is on the way could read it"}
		}
		m.opts = append(m.opts, mail.WithTLSPolicy(mail.NoTLS))
	default:
		return &FieldError{"tls", fmt.Sprintf("%q: want starttls, implicit or none", c.Mail.TLS)}
	}
	if c.Mail.User != "" {
		if c.Mail.Password == "" || c.Mail.TLS == MailNone {
			return &FieldError{"user", "needs a password_file, and TLS"}
		}
		m.opts = append(m.opts, mail.WithSMTPAuth(auth), mail.WithUsername(c.Mail.User), mail.WithPassword(c.Mail.Password))
	}
	m.c.Password = ""
	probe := mail.NewMsg()
	if err := probe.From(c.Mail.From); err != nil {
		return &FieldError{"from", fmt.Sprintf("%q: want an address", c.Mail.From)}
	}
	if n := len(c.Mail.To); n == 0 || n > maxRecipients {
		return &FieldError{"to", fmt.Sprintf("%d addresses: want 1 to %d", n, maxRecipients)}
	}
	if err := probe.To(c.Mail.To...); err != nil {
		return &FieldError{"to", fmt.Sprintf("%q: want addresses", c.Mail.To)}
	}
	_, m.domain, _ = strings.Cut(probe.GetFrom()[0].Address, "@")
	t.host = c.Mail.Server
	t.channel = m
	return nil
}

// Send implements Channel.
func (m *mailer) Send(ctx context.Context, d Delivery) error {
	msg, err := m.message(d)
	if err != nil {
		return &Failure{Cause: clean(err.Error()), Permanent: true}
	}
	client, err := mail.NewClient(m.host, append(slices.Clone(m.opts), mail.WithDialContextFunc(m.dialUntil(ctx)))...)
	if err != nil {
		return &Failure{Cause: clean(err.Error()), Permanent: true}
	}
	session, err := client.DialToSMTPClientWithContext(ctx)
	if err == nil {
		err = client.SendWithSMTPClient(session, msg)
		_ = client.CloseWithSMTPClient(session) // it has the message, or has not, by now
	}
	switch {
	case msg.IsDelivered():
		return nil // what went wrong afterwards would have people read it twice
	case err != nil && ctx.Err() != nil:
		return failed(ctx.Err())
	case err != nil:
		return mailFailure(err)
	}
	return &Failure{Cause: "the mail server did not take the message"}
}

// dialUntil dials for connections that end with ctx, whatever is waited for: go-mail
// itself would wait for a greeting without end, and a node could not stop.
func (m *mailer) dialUntil(ctx context.Context) mail.DialContextFunc {
	return func(dialing context.Context, network, address string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(dialing, network, address)
		if err != nil {
			return nil, err
		}
		context.AfterFunc(ctx, func() { _ = conn.Close() })
		if m.tls == nil {
			return conn, nil
		}
		secure := tls.Client(conn, m.tls)
		return secure, secure.HandshakeContext(dialing)
	}
}

// mailFailure is an error without the words of the server, which may be anything.
func mailFailure(err error) *Failure {
	if s, ok := errors.AsType[*mail.SendError](err); ok && s.ErrorCode() > 0 {
		return &Failure{Cause: fmt.Sprintf("%s: answered %d", s.Reason, s.ErrorCode())}
	}
	if p, ok := errors.AsType[*textproto.Error](err); ok {
		return &Failure{Cause: fmt.Sprintf("the mail server answered %d", p.Code)}
	}
	return failed(err)
}

// message makes the mail. What people wrote is in its bodies, and, as one line without
// control characters, in its subject: no text becomes a header.
func (m *mailer) message(d Delivery) (*mail.Msg, error) {
	words := d.words()
	msg := mail.NewMsg(mail.WithEncoding(mail.EncodingQP))
	if err := errors.Join(msg.From(m.c.From), msg.To(m.c.To...)); err != nil {
		return nil, err
	}
	msg.Subject("[hallpass] " + words.title)
	msg.SetMessageIDWithValue(d.ID + "@" + m.domain)
	msg.SetDateWithValue(d.Time.UTC().Truncate(time.Second))
	msg.SetGenHeader("Auto-Submitted", "auto-generated")
	if d.Request != nil { // mail programs show what is about one request together
		msg.SetGenHeader(mail.HeaderReferences, "<"+d.Request.ID+"@"+m.domain+">")
	}
	msg.SetBodyString(mail.TypeTextPlain, words.text())
	page, err := words.page()
	if err != nil {
		return nil, err
	}
	msg.AddAlternativeString(mail.TypeTextHTML, page)
	return msg, nil
}

// page is the message as HTML, with every text escaped.
func (m message) page() (string, error) {
	t, err := template.New("mail").Parse(mailPage)
	if err != nil {
		return "", err
	}
	type row struct{ Name, Value string }
	var rows []row
	for _, f := range m.fields {
		rows = append(rows, row{f.name, f.value})
	}
	var b strings.Builder
	err = t.Execute(&b, struct {
		Title, Link, Next string
		Rows              []row
	}{m.title, m.link, m.next, rows})
	return b.String(), err
}

// mailPage has no image, no style sheet and no script: nothing is fetched when it is read.
// Its one link opens a page, and opening it decides nothing.
const mailPage = `<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{{.Title}}</title></head>
<body style="font-family:sans-serif;line-height:1.4">
<h1 style="font-size:1.2em">{{.Title}}</h1>
<table>
{{- range .Rows}}
<tr><th scope="row" style="text-align:left;vertical-align:top;padding-right:1em">{{.Name}}</th><td style="white-space:pre-wrap">{{.Value}}</td></tr>
{{- end}}
</table>
{{- with .Link}}
<p><a href="{{.}}">Look at it</a></p>
{{- end}}
{{- with .Next}}
<p>To decide: <code>{{.}}</code></p>
{{- end}}
</body></html>
`
