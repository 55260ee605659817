package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/google/uuid"
)

// stepCA is one step-ca as `step ca init` sets it up: badger as its store, a JWK
// provisioner, and an issuer below a root, both with P-256 keys.
type stepCA struct {
	process     *process
	url         string
	conf        *tls.Config
	provisioner *ecdsa.PrivateKey
}

const (
	stepProvisioner = "bench"
	stepSubject     = "spiffe://acme.test/user/alice"
)

func startStepCA(ctx context.Context, r *report, binary string) (*stepCA, error) {
	root, err := newAuthority(nil, "", 1)
	if err != nil {
		return nil, err
	}
	issuer, err := newAuthority(root, "", 0)
	if err != nil {
		return nil, err
	}
	s := &stepCA{conf: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: x509.NewCertPool()}}
	s.conf.RootCAs.AddCert(root.cert)
	if s.provisioner, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	s.url = "https://" + address
	config, err := s.write(r.dir, address, root, issuer)
	if err != nil {
		return nil, err
	}
	if s.process, err = start(ctx, binary, config); err != nil {
		return nil, err
	}
	if err := s.process.waitFor(ctx, address); err != nil {
		s.process.stop()
		return nil, err
	}
	return s, nil
}

// write makes its folder and returns its configuration file.
func (s *stepCA) write(dir, address string, root, issuer *authority) (string, error) {
	dir = filepath.Join(dir, "step-ca")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	key, err := x509.MarshalPKCS8PrivateKey(issuer.key)
	if err != nil {
		return "", err
	}
	point, err := s.provisioner.PublicKey.Bytes() // 4, x, y
	if err != nil {
		return "", err
	}
	b64 := base64.RawURLEncoding.EncodeToString
	config, err := json.Marshal(map[string]any{
		"root": filepath.Join(dir, "root.pem"), "crt": filepath.Join(dir, "issuer.pem"), "key": filepath.Join(dir, "issuer.key"),
		"address": address, "dnsNames": []string{"127.0.0.1"}, "logger": map[string]string{"format": "text"},
		"db": map[string]string{"type": "badgerv2", "dataSource": filepath.Join(dir, "db")},
		"authority": map[string]any{"provisioners": []any{map[string]any{
			"type": "JWK", "name": stepProvisioner,
			"key": map[string]string{
				"use": "sig", "kty": "EC", "crv": "P-256", "alg": "ES256", "kid": stepProvisioner,
				"x": b64(point[1:33]), "y": b64(point[33:]),
			},
		}}},
	})
	if err != nil {
		return "", err
	}
	for name, content := range map[string][]byte{
		"root.pem":   pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.cert.Raw}),
		"issuer.pem": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: issuer.cert.Raw}),
		"issuer.key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}),
		"ca.json":    config,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return "", err
		}
	}
	return filepath.Join(dir, "ca.json"), nil
}

// signs mints certificates of step-ca, each with a token of its own, as its
// provisioner wants them.
type signs struct {
	*spread
	ca  *stepCA
	csr string
}

func (s *stepCA) signers(lanes int) (*signs, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(stepSubject)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{u}}, key)
	if err != nil {
		return nil, err
	}
	csr := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
	return &signs{spread: newSpread([]string{s.url}, lanes, s.conf), ca: s, csr: csr}, nil
}

func (s *signs) write(ctx context.Context, lane int) error {
	token, err := s.ca.token()
	if err != nil {
		return err
	}
	body, err := json.Marshal(map[string]string{"csr": s.csr, "ott": token})
	if err != nil {
		return err
	}
	_, _, err = s.post(ctx, lane, "/1.0/sign", http.Header{"Content-Type": {"application/json"}}, body)
	return err
}

func (*signs) finish(context.Context) error { return nil }

// token is the provisioner's word that the holder may have the certificate, a
// JWT that is good once.
func (s *stepCA) token() (string, error) {
	id, err := uuid.NewRandom()
	if err != nil {
		return "", err
	}
	now := time.Now().Unix()
	claims, err := json.Marshal(map[string]any{
		"iss": stepProvisioner, "sub": stepSubject, "aud": s.url + "/1.0/sign", "sans": []string{stepSubject},
		"iat": now, "nbf": now - 5, "exp": now + 300, "jti": id.String(),
	})
	if err != nil {
		return "", err
	}
	b64 := base64.RawURLEncoding.EncodeToString
	signed := b64(fmt.Appendf(nil, `{"alg":"ES256","kid":%q,"typ":"JWT"}`, stepProvisioner)) + "." + b64(claims)
	sum := sha256.Sum256([]byte(signed))
	x, y, err := ecdsa.Sign(rand.Reader, s.provisioner, sum[:])
	if err != nil {
		return "", err
	}
	signature := append(x.FillBytes(make([]byte, 32)), y.FillBytes(make([]byte, 32))...)
	return signed + "." + b64(signature), nil
}
