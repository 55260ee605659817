package proxy

import (
	"bufio"
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hallpass/hallpass/internal/near"
)

// FuzzRenewalMessage: a renewal is read only as what makeRenewal writes: its parts, written again behind their lengths, are
// the message, and each certificate is the bytes that the signature will be checked over.
func FuzzRenewalMessage(f *testing.F) {
	cert := newPKI(f).grant(time.Hour, "GET /a")
	msg, err := makeRenewal(func(_ string, context []byte, n int) ([]byte, error) {
		return append(context, make([]byte, n)...)[:n], nil
	}, &cert)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(msg)
	f.Add([]byte{1, 0, 1, 0x30, 0, 1, 0x30})
	f.Fuzz(func(t *testing.T, msg []byte) {
		chain, raw, sig, err := parseRenewal(msg)
		if err != nil {
			if !errors.Is(err, errRenewal) || chain != nil {
				t.Errorf("%d certificates, %v", len(chain), err)
			}
			return
		}
		again := []byte{byte(len(chain))}
		for i, c := range chain {
			if !bytes.Equal(c.Raw, raw[i]) {
				t.Errorf("certificate %d is not what is signed", i)
			}
			again = append(binary.BigEndian.AppendUint16(again, uint16(len(c.Raw))), c.Raw...)
		}
		if again = append(binary.BigEndian.AppendUint16(again, uint16(len(sig))), sig...); !bytes.Equal(again, msg) {
			t.Errorf("%x means %x", msg, again)
		}
	})
}

// FuzzCertificateNames puts any bytes where a certificate has its names. Where crypto/x509 reads the certificate, readNames
// finds as many URIs as it does, and at least as many other names; and URIs alone, written anew as DER, are what was read.
func FuzzCertificateNames(f *testing.F) {
	var cert plainCertificate
	if rest, err := asn1.Unmarshal(newPKI(f).grant(time.Hour, "GET /a").Certificate[0], &cert); err != nil || len(rest) > 0 {
		f.Fatal(err)
	}
	for _, names := range [][]asn1.RawValue{
		{{Class: asn1.ClassContextSpecific, Tag: tagURI, Bytes: []byte("spiffe://acme.test/user/alice")}},
		{{Class: asn1.ClassContextSpecific, Tag: tagURI, Bytes: []byte("spiffe://a.b/c")}, {Class: asn1.ClassContextSpecific, Tag: 2, Bytes: []byte("a.b")}},
		{{Class: asn1.ClassContextSpecific, Tag: 7, Bytes: []byte{127, 0, 0, 1}}, {Class: asn1.ClassContextSpecific, Tag: 1, Bytes: []byte("a@b.c")}},
	} {
		der, err := asn1.Marshal(names)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(der, uint16(0), byte(0x86))
	}
	f.Fuzz(func(t *testing.T, value []byte, at uint16, b byte) {
		for _, value := range near.Of(value, at, b) {
			cert.TBS.Extensions = []pkix.Extension{{Id: oidSubjectAltName(), Value: value}}
			der, err := asn1.Marshal(cert)
			if err != nil {
				t.Fatal(err)
			}
			tryNames(t, value, der)
		}
	})
}

// plainCertificate is one as it is written, whoever has signed it.
type plainCertificate struct {
	TBS struct {
		Version                              int `asn1:"optional,explicit,default:0,tag:0"`
		Serial                               *big.Int
		Algorithm                            pkix.AlgorithmIdentifier
		Issuer, Validity, Subject, PublicKey asn1.RawValue
		Extensions                           []pkix.Extension `asn1:"optional,explicit,tag:3"`
	}
	Algorithm pkix.AlgorithmIdentifier
	Signature asn1.BitString
}

func tryNames(t *testing.T, value, der []byte) {
	t.Helper()
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return
	}
	names, err := readNames(cert)
	if err != nil {
		return
	}
	if len(names.uris) != len(cert.URIs) || names.others < len(cert.DNSNames)+len(cert.IPAddresses)+len(cert.EmailAddresses) {
		t.Fatalf("%q and %d others in %x, where crypto/x509 reads %v", names.uris, names.others, value, cert.URIs)
	}
	if names.others > 0 {
		return
	}
	list := []asn1.RawValue{}
	for _, uri := range names.uris {
		list = append(list, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: tagURI, Bytes: []byte(uri)})
	}
	if again, err := asn1.Marshal(list); err != nil || !bytes.Equal(again, value) {
		t.Errorf("%x means %x, %v", value, again, err)
	}
}

// FuzzAnswer: where an upstream's answer is read, net/http reads it too, with the same status, the same framing and, when it
// comes whole, the same body; and the head that is made of it for the client is one answer of that status.
func FuzzAnswer(f *testing.F) {
	for _, text := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX: y\r\n\r\n",
		"HTTP/1.1 206 \r\ntransfer-encoding: chunked\r\nTrailer: X\r\n\r\n0\r\n\r\n", "HTTP/1.0 404 Not Found\r\nX: y\r\n\r\ngone", "HTTP/1.1 204 \r\nConnection: x-y, close\r\nX-Y: 1\r\n\r\n",
		"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\nDate: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
	} {
		f.Add([]byte(text), false, uint16(0), byte('H'))
		f.Add([]byte(text), true, uint16(0), byte('H'))
	}
	f.Fuzz(func(t *testing.T, data []byte, head bool, at uint16, b byte) {
		for _, data := range near.Of(data, at, b) {
			tryAnswer(t, data, head)
		}
	})
}

func tryAnswer(t *testing.T, data []byte, head bool) {
	t.Helper()
	if len(data) > 3000 {
		return // net/http bounds trailers more tightly
	}
	method := http.MethodGet
	if head {
		method = http.MethodHead
	}
	buf, n, w, err := readAnswer(bytes.NewReader(data), make([]byte, 4096), 0)
	if err != nil {
		return
	}
	var a reply
	fields, err := a.read(buf[:n], method, nil)
	if err != nil || a.status < 200 {
		return
	}
	rest := buf[n:w]
	other, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(data)), &http.Request{Method: method})
	if err != nil {
		if strings.Contains(err.Error(), "bad trailer key") {
			return // it judges Trailer, which is passed on
		}
		t.Fatalf("net/http does not read %q: %v", data, err)
	}
	defer func() { _ = other.Body.Close() }()
	if other.StatusCode != a.status || a.framing == framedLength && other.ContentLength != a.length || (a.framing == framedChunks) != (len(other.TransferEncoding) > 0 && !head) {
		t.Errorf("%q is read as %+v, and by net/http as %+v", data, a, other)
	}
	if body, whole := bodyOf(&a, rest); whole {
		if got, err := io.ReadAll(other.Body); err != nil || !bytes.Equal(got, body) {
			t.Errorf("%q has the body %q, and in net/http's eyes %q, %v", data, body, got, err)
		}
	}
	out := a.compose(nil, buf[:n], fields, false, false)
	back, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(out)), &http.Request{Method: method})
	if err != nil || back.StatusCode != a.status || bytes.Index(out, []byte("\r\n\r\n")) != len(out)-4 {
		t.Fatalf("%q is passed on as %q: %v", data, out, err)
	}
	defer func() { _ = back.Body.Close() }()
	for _, name := range a.named {
		if !slices.Contains([]string{"transfer-encoding", "content-length", "date", "connection", "trailer"}, strings.ToLower(string(name))) && back.Header[http.CanonicalHeaderKey(string(name))] != nil {
			t.Errorf("%q is passed on with %s, which Connection names", data, name)
		}
	}
}

// bodyOf is the body in the bytes behind an answer's head, and whether it is whole.
func bodyOf(a *reply, rest []byte) (body []byte, whole bool) {
	switch a.framing {
	case framedLength:
		if int64(len(rest)) < a.length {
			return nil, false
		}
		return rest[:a.length], true
	case framedChunks:
		var k chunks
		for k.state != chunkDone {
			if len(rest) == 0 {
				return nil, false
			}
			used, data, bad := k.next(rest)
			if bad != nil {
				return nil, false
			}
			body, rest = append(body, data...), rest[used:]
		}
		return body, true
	case framedClose:
		return rest, true
	default:
		return nil, true
	}
}

// FuzzFeedEvents: events are read as they were written, each with its own name, though one before them had a name and no data.
func FuzzFeedEvents(f *testing.F) {
	f.Add("", "revoked", `{"epoch":1}`)
	f.Add("", "beat", " x: y")
	f.Fuzz(func(t *testing.T, empty, name, data string) {
		for _, text := range []string{empty, name, data} {
			if strings.ContainsAny(text, "\r\n") || len(text) > 1<<10 {
				return
			}
		}
		stream := "event: " + name + "\nid: 7\ndata: " + data + "\n\nevent: " + empty + "\n\n: alive\n\ndata: " + data + "\ndata: 2\n\ndata: cut off"
		var got []string
		err := readEvents(strings.NewReader(stream), func(name string, data []byte) error {
			got = append(got, name, string(data))
			return nil
		})
		if want := []string{name, data + "\n", "", data + "\n2\n"}; !slices.Equal(got, want) || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%q is read as %q, %v", stream, got, err)
		}
	})
}

// spoken is a connection on which somebody has said something and no more will come.
type spoken struct {
	net.Conn
	io.Reader
}

func (s spoken) Read(p []byte) (int, error)    { return s.Reader.Read(p) }
func (spoken) SetReadDeadline(time.Time) error { return nil }

// FuzzForeignPage sends any bytes to a loopback port for bytes. What comes out is what went in, or nothing; and nothing does of
// what net/http reads as the request of a page of elsewhere, by Host, Origin or Sec-Fetch-Site as a browser writes them.
func FuzzForeignPage(f *testing.F) {
	c := &Connector{host: "payments.acme.test"}
	for _, text := range []string{
		"POST / HTTP/1.1\r\nHost: localhost:80\r\nOrigin: http://localhost:80\r\nSec-Fetch-Site: same-origin\r\n\r\nbody",
		"GET /a HTTP/1.1\r\nHost: 127.0.0.1:80\r\n\r\n", "GET / HTTP/1.1\r\nHost: payments.acme.test\r\nSec-Fetch-Site: none\r\n\r\n",
		"GET /a HTTP/1.1\r\nHost: 127.0.0.1:80@\r\n\r\n", "EHLO localhost\r\nQUIT\r\n", "GET /key\r\n", "\x16\x03\x01",
	} {
		f.Add([]byte(text), uint16(strings.LastIndex(text, ":80\r")+7), byte('x'))
	}
	f.Fuzz(func(t *testing.T, data []byte, at uint16, b byte) {
		for _, data := range near.Of(data, at, b) {
			c.tryPage(t, data)
		}
	})
}

func (c *Connector) tryPage(t *testing.T, data []byte) {
	t.Helper()
	got, err := io.ReadAll(&notForeign{Conn: spoken{Reader: bytes.NewReader(data)}, foreign: func(r *http.Request) string { return c.foreign(r, true) }})
	if err != nil {
		if len(got) > 0 || !errors.Is(err, errForeignPage) {
			t.Errorf("%q comes out of %q, %v", got, data, err)
		}
		return
	}
	if !bytes.Equal(got, data) {
		t.Errorf("%q comes out of %q", got, data)
	}
	r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(data)))
	if err != nil || r.ProtoMajor != 1 || strings.Trim(r.Method, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" || len(r.Method) > 16 || r.RequestURI[0] != '/' {
		return // no browser sends that
	}
	at, err := url.Parse("http://" + r.Host + "/")
	if err != nil {
		return
	}
	if name := at.Hostname(); !strings.EqualFold(name, "localhost") && !strings.EqualFold(name, c.host) && !net.ParseIP(name).IsLoopback() {
		t.Errorf("a page's request to %q comes through: %q", name, data)
	}
	for _, origin := range r.Header["Origin"] {
		if origin != "http://"+r.Host {
			t.Errorf("a request of the page of %q comes through: %q", origin, data)
		}
	}
	for _, site := range r.Header["Sec-Fetch-Site"] {
		if site != "same-origin" && site != "none" {
			t.Errorf("a %s request comes through: %q", site, data)
		}
	}
}

// FuzzSettings: a configuration is read or told to be wrong, and none that is in order observes for longer than the 90 days that
// it may, or has a standing rule that a grant's name could match.
func FuzzSettings(f *testing.F) {
	base := "service: payments\nlisten: 127.0.0.1:0\nhosts: [localhost]\nupstream: http://127.0.0.1:1\ntrust_domain: acme.test\nidentity_bundle: i.pem\n" +
		"grants_bundle: g.pem\ncertificate: c.pem\nkey: k.pem\naccess_log: {path: '-'}\n"
	for _, more := range []string{
		"mode: observe\nuntil: " + inDays(1) + "\n", "observe: [{permissions: ['GET /a'], until: " + inDays(1) + "}]\n",
		"allow: [{under: 'spiffe://acme.test/a', permissions: ['GET /a']}]\n", "limits: {sources: [10.0.0.0/8], hours: ['Mon 08:00-09:00'], time_zone: UTC, rate_per_grant: 1/s}\n",
	} {
		f.Add([]byte(base+more), uint16(strings.Index(base+more, "/a")+5), byte(' '))
	}
	f.Add([]byte(base+"allow: [{under: 'spiffe://acme.test/a', permissions: ['GET /a']}]\n"), uint16(0), byte(' '))
	f.Fuzz(func(t *testing.T, data []byte, at uint16, b byte) {
		for _, data := range append(near.Of(data, at, b), near.Word(data, at)...) {
			trySettings(t, data)
		}
	})
}

func trySettings(t *testing.T, data []byte) {
	t.Helper()
	s, err := parseSettings("proxy.yaml", data)
	if err != nil {
		if !errors.Is(err, ErrSettings) {
			t.Errorf("%v", err)
		}
		return
	}
	cfgs, err := newConfigs(Config{Settings: s})
	if err != nil {
		return
	}
	for _, cfg := range cfgs {
		for _, o := range cfg.rules.observing {
			if time.Until(o.until) > maxObserve || !o.whole && o.matcher == nil {
				t.Errorf("%+v is observed: %q", o, data)
			}
		}
		for _, rule := range cfg.rules.standing {
			if rule.id.TrustDomain() != cfg.identityTD || rule.id.Path() == "" || rule.matcher == nil {
				t.Errorf("%+v is allowed: %q", rule, data)
			}
		}
	}
}
