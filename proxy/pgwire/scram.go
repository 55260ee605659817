package pgwire

import (
	"bytes"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

const (
	scramPlain = "SCRAM-SHA-256"
	scramBound = "SCRAM-SHA-256-PLUS"

	// maxIterations bounds what a server can have us compute: PostgreSQL's default is 4096.
	maxIterations = 1 << 20
	// minIterations is RFC 7677's. With fewer, whoever plays the server learns enough to guess the password cheaply.
	minIterations = 4096
)

// errSCRAM is returned when a server's part of SCRAM is not as RFC 5802 has it, or does not prove that it knows the password.
var errSCRAM = errors.New("SCRAM-SHA-256")

func badSCRAM(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errSCRAM, fmt.Sprintf(format, args...))
}

// scram is a client's side of SCRAM-SHA-256 (RFC 5802, RFC 7677), bound to the TLS channel where there is one (RFC 5929,
// tls-server-end-point): a password is then of no use to whoever sits between with another certificate.
type scram struct {
	password  string
	header    string // gs2-header
	binding   []byte // of the channel; nil without
	nonce     string
	first     string // client-first-message-bare
	signature []byte // what the server must send
}

// newSCRAM begins. offered are the server's mechanisms; binding is nil without TLS.
func newSCRAM(password string, offered []string, binding []byte) (s *scram, mechanism string, err error) {
	var raw [18]byte
	if _, err := rand.Read(raw[:]); err != nil {
		return nil, "", err
	}
	s = &scram{password: password, nonce: base64.StdEncoding.EncodeToString(raw[:])}
	plain, bound := false, false
	for _, m := range offered {
		plain, bound = plain || m == scramPlain, bound || m == scramBound
	}
	switch {
	case bound && binding != nil:
		mechanism, s.header, s.binding = scramBound, "p=tls-server-end-point,,", binding
	case !plain:
		return nil, "", badSCRAM("the server offers %q", offered)
	case binding != nil:
		// We could have bound. A server that could as well, and hears this, knows that somebody took its offer away.
		mechanism, s.header = scramPlain, "y,,"
	default:
		mechanism, s.header = scramPlain, "n,,"
	}
	s.first = "n=,r=" + s.nonce // PostgreSQL takes the user's name from the start-up packet
	return s, mechanism, nil
}

// begin is the client-first-message.
func (s *scram) begin() []byte { return []byte(s.header + s.first) }

// answer is the client-final-message for the server-first-message.
func (s *scram) answer(server []byte) ([]byte, error) {
	fields := strings.Split(string(server), ",")
	if len(fields) != 3 {
		return nil, badSCRAM("the server's first message has %d fields", len(fields))
	}
	nonce, ok1 := strings.CutPrefix(fields[0], "r=")
	salt64, ok2 := strings.CutPrefix(fields[1], "s=")
	count, ok3 := strings.CutPrefix(fields[2], "i=")
	if !ok1 || !ok2 || !ok3 || len(nonce) <= len(s.nonce) || !strings.HasPrefix(nonce, s.nonce) {
		return nil, badSCRAM("the server's first message is malformed")
	}
	salt, err := base64.StdEncoding.Strict().DecodeString(salt64)
	if err != nil || len(salt) == 0 {
		return nil, badSCRAM("the salt is malformed")
	}
	n, err := strconv.Atoi(count)
	if err != nil || n < minIterations || n > maxIterations {
		return nil, badSCRAM("%q iterations; from %d to %d are done", count, minIterations, maxIterations)
	}
	salted, err := pbkdf2.Key(sha256.New, s.password, salt, n, sha256.Size)
	if err != nil {
		return nil, err
	}
	channel := base64.StdEncoding.EncodeToString(append([]byte(s.header), s.binding...))
	without := "c=" + channel + ",r=" + nonce
	message := []byte(s.first + "," + string(server) + "," + without)

	clientKey := sum(salted, []byte("Client Key"))
	stored := sha256.Sum256(clientKey)
	proof := make([]byte, sha256.Size)
	subtle.XORBytes(proof, clientKey, sum(stored[:], message))
	s.signature = sum(sum(salted, []byte("Server Key")), message)
	return []byte(without + ",p=" + base64.StdEncoding.EncodeToString(proof)), nil
}

// finish checks the server-final-message: that the server knows the password too.
func (s *scram) finish(server []byte) error {
	text, ok := bytes.CutPrefix(server, []byte("v="))
	got, err := base64.StdEncoding.Strict().DecodeString(string(text))
	if !ok || err != nil || s.signature == nil || !hmac.Equal(got, s.signature) {
		return badSCRAM("the server did not prove that it knows the password")
	}
	return nil
}

func sum(key, message []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write(message)
	return h.Sum(nil)
}

// endPoint is tls-server-end-point of a certificate (RFC 5929 §4.1): its hash, by that of its signature but at least
// SHA-256. It is nil for signatures without one, such as Ed25519's.
func endPoint(c *x509.Certificate) []byte {
	switch c.SignatureAlgorithm {
	case x509.MD5WithRSA, x509.SHA1WithRSA, x509.ECDSAWithSHA1,
		x509.SHA256WithRSA, x509.SHA256WithRSAPSS, x509.ECDSAWithSHA256:
		h := sha256.Sum256(c.Raw)
		return h[:]
	case x509.SHA384WithRSA, x509.SHA384WithRSAPSS, x509.ECDSAWithSHA384:
		h := sha512.Sum384(c.Raw)
		return h[:]
	case x509.SHA512WithRSA, x509.SHA512WithRSAPSS, x509.ECDSAWithSHA512:
		h := sha512.Sum512(c.Raw)
		return h[:]
	default:
		return nil
	}
}
