package ca

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
)

const pemCertificate = "CERTIFICATE"

// EncodeCertificates writes certificates as PEM blocks, in order.
func EncodeCertificates(certs ...*x509.Certificate) []byte {
	var buf bytes.Buffer
	for _, cert := range certs {
		// A bytes.Buffer takes every write.
		_ = pem.Encode(&buf, &pem.Block{Type: pemCertificate, Bytes: cert.Raw})
	}
	return buf.Bytes()
}

// DecodeCertificates reads one or more PEM certificates and nothing besides: a
// private key pasted below its certificate is an error here, so that it goes no
// further.
func DecodeCertificates(text []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for rest := bytes.TrimSpace(text); len(rest) > 0; rest = bytes.TrimSpace(rest) {
		if !bytes.HasPrefix(rest, []byte("-----BEGIN ")) {
			return nil, errors.New("ca: not a PEM certificate")
		}
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return nil, errors.New("ca: broken PEM")
		}
		if block.Type != pemCertificate {
			return nil, fmt.Errorf("ca: a PEM block %q where a certificate belongs", block.Type)
		}
		if len(block.Headers) > 0 {
			return nil, errors.New("ca: a PEM certificate with headers")
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("ca: certificate %d: %w", len(certs)+1, err)
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return nil, errors.New("ca: no PEM certificate")
	}
	return certs, nil
}

// onePEM returns the content of the single PEM block in text, which must have
// one of the given types.
func onePEM(text []byte, types ...string) ([]byte, error) {
	trimmed := bytes.TrimSpace(text)
	if !bytes.HasPrefix(trimmed, []byte("-----BEGIN ")) {
		return nil, fmt.Errorf("not a PEM %s", strings.ToLower(types[0]))
	}
	block, rest := pem.Decode(trimmed)
	if block == nil {
		return nil, errors.New("broken PEM")
	}
	if len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("more than one PEM block")
	}
	if !slices.Contains(types, block.Type) {
		return nil, fmt.Errorf("a PEM block %q where %q belongs", block.Type, types[0])
	}
	return block.Bytes, nil
}
