package proxy

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Renewal in band. A carrier's client presents the chain of a renewed certificate
// and a signature by the new certificate's key over a value that only the two ends
// of this very TLS session can compute: the session's exporter, of a label that is
// ours and with the hash of the chain for its context. It is the idea of RFC 9261,
// in one message.
//
//	renewal   = count(1) { length(2) DER }* length(2) signature
//	context   = SHA-256( { length(4) DER }* )
//	signed    = 64 spaces, purpose, NUL, exporter(label, context, 32 bytes), context
//	signature = ECDSA with SHA-256, ASN.1
//
// So a proof is worth nothing on another connection, with another chain, or for
// another purpose: what is signed in TLS itself begins with other words. Who stole
// a certificate and opened a connection with it cannot have that connection live
// on, whatever its owner renews.
const (
	renewalLabel   = "EXPERIMENTAL hallpass in-band renewal v1"
	renewalPurpose = "hallpass in-band renewal v1, by the client"

	// The message comes in a header, in base64 (RFC 4648 §4) without padding. Of a
	// body flow control would say when it may be sent, and a stream whose service
	// reads no more can have used up what there is for all.
	renewalHeader = "Hallpass-Renewal"

	maxRenewal      = 32 << 10
	maxRenewalChain = 8
)

func renewalText() *base64.Encoding { return base64.RawStdEncoding.Strict() }

var errRenewal = errors.New("the renewal cannot be read")

// renewalDigest is what is signed, hashed.
func renewalDigest(export func(string, []byte, int) ([]byte, error), chain [][]byte) ([]byte, error) {
	sum := sha256.New()
	for _, der := range chain {
		sum.Write(binary.BigEndian.AppendUint32(nil, uint32(len(der))))
		sum.Write(der)
	}
	context := sum.Sum(nil)
	secret, err := export(renewalLabel, context, sha256.Size)
	if err != nil {
		return nil, err
	}
	signed := sha256.New()
	_, _ = io.WriteString(signed, strings.Repeat(" ", 64)+renewalPurpose+"\x00") // a hash takes everything
	signed.Write(secret)
	signed.Write(context)
	return signed.Sum(nil), nil
}

// makeRenewal is the message that proves cert on the session.
func makeRenewal(export func(string, []byte, int) ([]byte, error), cert *tls.Certificate) ([]byte, error) {
	key, ok := cert.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a key of type %T signs nothing", cert.PrivateKey)
	}
	digest, err := renewalDigest(export, cert.Certificate)
	if err != nil {
		return nil, err
	}
	sig, err := key.Sign(rand.Reader, digest, crypto.SHA256)
	if err != nil {
		return nil, err
	}
	msg := []byte{byte(len(cert.Certificate))}
	for _, part := range append(slices.Clone(cert.Certificate), sig) {
		msg = append(binary.BigEndian.AppendUint16(msg, uint16(len(part))), part...)
	}
	if len(cert.Certificate) > maxRenewalChain || len(msg) > maxRenewal {
		return nil, fmt.Errorf("a chain of %d certificates and %d bytes is too long to be renewed with", len(cert.Certificate), len(msg))
	}
	return msg, nil
}

// parseRenewal reads a message, which has one spelling.
func parseRenewal(msg []byte) (chain []*x509.Certificate, raw [][]byte, sig []byte, err error) {
	if len(msg) == 0 || msg[0] == 0 || msg[0] > maxRenewalChain {
		return nil, nil, nil, errRenewal
	}
	rest := msg[1:]
	for range msg[0] {
		var der []byte
		if der, rest, err = part(rest); err != nil {
			return nil, nil, nil, err
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, nil, nil, fmt.Errorf("%w: %w", errRenewal, err)
		}
		chain, raw = append(chain, cert), append(raw, der)
	}
	if sig, rest, err = part(rest); err != nil || len(rest) > 0 {
		return nil, nil, nil, errRenewal
	}
	return chain, raw, sig, nil
}

// part cuts the first of what is in b, behind its length, off the rest.
func part(b []byte) (first, rest []byte, err error) {
	if len(b) < 2 {
		return nil, nil, errRenewal
	}
	n := int(binary.BigEndian.Uint16(b))
	if b = b[2:]; n == 0 || n > len(b) {
		return nil, nil, errRenewal
	}
	return b[:n], b[n:], nil
}

// renew answers a renewal. A refused one changes nothing: the connection lives as
// long as it would have.
func (p *Proxy) renew(c *conn, w http.ResponseWriter, r *http.Request) {
	p.active.Add(1)
	defer p.active.Add(-1)
	c.requests.Add(1)
	if !c.carrier.renewing.CompareAndSwap(false, true) {
		p.refuseRenewal(w, r, &refusal{reasonTooOften, errTooOften})
		return
	}
	defer c.carrier.renewing.Store(false)
	started := p.cfg.now()
	adm, err := p.takeRenewal(c, r)
	if err == nil {
		err = p.recordRenewal(c, adm, started, nil)
	} else if !errors.Is(err, errTooOften) { // a record each would fill the disk for whoever asks a thousand times
		_ = p.recordRenewal(c, adm, started, err) // a failure denies the next
	}
	if err == nil && !p.live.rearm(c, adm) {
		err = refuse(reasonExpired, "the connection has ended")
	}
	if err != nil {
		p.refuseRenewal(w, r, err)
		return
	}
	// Whatever changed since the check was told to who is connected with what was
	// proven before: look again.
	if err := p.recheck(c, nil); err != nil {
		c.cut(reasonOf(err))
		return
	}
	w.WriteHeader(http.StatusOK)
}

func (p *Proxy) refuseRenewal(w http.ResponseWriter, r *http.Request, err error) {
	status := http.StatusForbidden
	switch reasonOf(err) {
	case reasonMalformed:
		status = http.StatusBadRequest
	case reasonTooOften:
		status = http.StatusTooManyRequests
	case reasonLogUnavailable:
		status = http.StatusServiceUnavailable
	}
	p.answers.send(w, r, newProblem(status, reasonOf(err), "the certificate was not taken: "+reasonOf(err), p.cfg.service), false)
}

var errTooOften = errors.New("one renewal at a time, and one a second")

// takeRenewal reads a renewal and checks it, for whoever set c.carrier.renewing. The admission comes back with a
// refusal too, once its chain is verified.
func (p *Proxy) takeRenewal(c *conn, r *http.Request) (*admission, error) {
	now := time.Now()
	if now.Before(c.carrier.next) {
		return nil, &refusal{reasonTooOften, errTooOften}
	}
	c.carrier.next = now.Add(p.renewEvery)
	if !p.access.admits() {
		p.access.skip()
		return nil, refuse(reasonLogUnavailable, "the access log cannot be written")
	}
	msg, err := readRenewal(r)
	if err != nil {
		return nil, &refusal{reasonMalformed, err}
	}
	return p.reprove(c, msg)
}

// readRenewal is the message that a request brings.
func readRenewal(r *http.Request) ([]byte, error) {
	text := r.Header[renewalHeader]
	switch {
	case len(text) != 1 || r.ContentLength != 0:
		return nil, fmt.Errorf("%w: it is one header %s and nothing else", errRenewal, renewalHeader)
	case len(text[0]) > renewalText().EncodedLen(maxRenewal):
		return nil, fmt.Errorf("%w: over %d bytes", errRenewal, maxRenewal)
	}
	return renewalText().DecodeString(text[0])
}

// reprove checks a renewal as a handshake is checked, and that it is one: of the
// same grant with the same scope, ending no sooner, by who has this session.
func (p *Proxy) reprove(c *conn, msg []byte) (*admission, error) {
	chain, raw, sig, err := parseRenewal(msg)
	if err != nil {
		return nil, &refusal{reasonMalformed, err}
	}
	adm, err := p.admit(chain, p.keeper.cur.Load())
	if err != nil {
		return adm, err
	}
	was := c.proven()
	switch {
	case !was.isGrant(), !adm.isGrant(), adm.id != was.id:
		return adm, refuse(reasonOtherGrant, "the certificate says %s", adm.id)
	case adm.emergency != was.emergency:
		// The upstream has been told for the whole connection whether custodians made it.
		return adm, refuse(reasonOtherGrant, "an emergency issuer signed one of the two")
	case adm.notAfter.Before(was.notAfter):
		return adm, refuse(reasonNotLater, "the certificate ends sooner than the one before")
	}
	key, ok := chain[0].PublicKey.(*ecdsa.PublicKey)
	if !ok {
		return adm, refuse(reasonProof, "a key of type %T proves nothing here", chain[0].PublicKey)
	}
	digest, err := renewalDigest(c.carrier.export, raw)
	if err != nil {
		return adm, &refusal{reasonProof, err}
	}
	if !ecdsa.VerifyASN1(key, digest, sig) {
		return adm, refuse(reasonProof, "the signature is not over this session by the new key")
	}
	return adm, nil
}

// recordRenewal writes the record of a renewal.
func (p *Proxy) recordRenewal(c *conn, adm *admission, started time.Time, refused error) error {
	r := record{
		time: started, kind: kindRenewal, event: "end", conn: c.id, service: p.cfg.service, protocol: "tls",
		decision: decisionAllow, peer: c.peer,
	}
	if refused != nil {
		r.decision, r.reason = decisionRefuse, reasonOf(refused)
	}
	if adm == nil {
		adm = c.proven()
	}
	r.of(adm)
	if err := p.access.write(&r); err != nil {
		return refuse(reasonLogUnavailable, "the access log cannot be written")
	}
	return nil
}
