package notify

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// webhook sends as Standard Webhooks has it (standardwebhooks.com, 1.0): a receiver
// checks the signature, refuses what is older than some minutes, and acts once on an
// id.
type webhook struct {
	poster *poster
	url    string
	keys   []SigningKey
	now    func() time.Time
}

// Send implements Channel.
func (w *webhook) Send(ctx context.Context, d Delivery) error {
	body, err := d.CloudEvent()
	if err != nil {
		return &Failure{Cause: clean(err.Error()), Permanent: true}
	}
	at := strconv.FormatInt(w.now().Unix(), 10)
	// Spelled as net/http has them; receivers compare header names in any case.
	return w.poster.post(ctx, w.url, http.Header{
		"Content-Type":      {"application/cloudevents+json"},
		"Webhook-Id":        {d.ID},
		"Webhook-Timestamp": {at},
		"Webhook-Signature": {sign(w.keys, d.ID, at, body)},
	}, body)
}

// sign makes the signatures, one of each key: while a secret is exchanged, a receiver
// that knows either takes it.
func sign(keys []SigningKey, id, at string, body []byte) string {
	content := append([]byte(id+"."+at+"."), body...)
	all := make([]string, len(keys))
	for i, k := range keys {
		all[i] = k.sign(content)
	}
	return strings.Join(all, " ")
}

// SigningKey signs webhooks: a secret that the receiver has too, or a private key of
// which it has the public one. The zero SigningKey is none.
type SigningKey struct {
	secret  []byte
	private ed25519.PrivateKey
}

// errSigningKey says what a key must be, and not what it is.
var errSigningKey = errors.New("want whsec_ and 24 to 64 bytes in base64, or whsk_ and an ed25519 private key in base64 (its seed, or seed and public key)")

// ParseSigningKey reads a secret of Standard Webhooks, in one of its text forms.
func ParseSigningKey(text string) (SigningKey, error) {
	text = strings.TrimSpace(text)
	if encoded, ok := strings.CutPrefix(text, "whsec_"); ok {
		secret, err := base64.StdEncoding.DecodeString(encoded)
		if err != nil || len(secret) < 24 || len(secret) > 64 {
			return SigningKey{}, errSigningKey
		}
		return SigningKey{secret: secret}, nil
	}
	encoded, ok := strings.CutPrefix(text, "whsk_")
	raw, err := base64.StdEncoding.DecodeString(encoded)
	if !ok || err != nil || len(raw) != ed25519.SeedSize && len(raw) != ed25519.PrivateKeySize {
		return SigningKey{}, errSigningKey
	}
	private := ed25519.NewKeyFromSeed(raw[:ed25519.SeedSize])
	if len(raw) == ed25519.PrivateKeySize && !bytes.Equal(private, raw) {
		return SigningKey{}, errSigningKey // a public key that is another's
	}
	return SigningKey{private: private}, nil
}

func (k SigningKey) sign(content []byte) string {
	if k.private != nil {
		return "v1a," + base64.StdEncoding.EncodeToString(ed25519.Sign(k.private, content))
	}
	mac := hmac.New(sha256.New, k.secret)
	_, _ = mac.Write(content) // it never fails
	return "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// String keeps the key out of whatever prints it.
func (k SigningKey) String() string { return "(a signing key)" }

// GoString does the same.
func (k SigningKey) GoString() string { return k.String() }
