package raftstore

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
	"time"
)

// alpn keeps a connection meant for another protocol, served with the same key by mistake, from being taken for ours.
const alpn = "hallpass-raftstore/1"

// pins knows which key each node must prove to hold. There is no CA, no name and no expiry in it: a cluster whose nodes
// needed new certificates to talk, and a quorum to issue them, could never come back.
type pins struct {
	certificate tls.Certificate
	roster      *roster
}

func newPins(key ed25519.PrivateKey, known *roster) (*pins, error) {
	certificate, err := selfMade(key)
	if err != nil {
		return nil, fmt.Errorf("make certificate: %w", err)
	}
	return &pins{certificate: certificate, roster: known}, nil
}

// selfMade wraps the key in a certificate, which TLS wants for carrying it. Nothing in it but the key is ever looked at.
func selfMade(key ed25519.PrivateKey) (tls.Certificate, error) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		NotBefore:    time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

func (p *pins) config() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{p.certificate},
		NextProtos:             []string{alpn},
		SessionTicketsDisabled: true, // a resumed session would outlive a change of the membership
	}
}

func (p *pins) server() *tls.Config {
	c := p.config()
	c.ClientAuth = tls.RequireAnyClientCert // VerifyConnection decides, by key
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		_, err := p.peer(cs)
		return err
	}
	return c
}

// client accepts the one node that was dialed: another member that answers at its address is refused too.
func (p *pins) client(id string) *tls.Config {
	c := p.config()
	c.InsecureSkipVerify = true // of names and chains: VerifyConnection compares the key with the pinned one instead
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		peer, err := p.peer(cs)
		if err == nil && peer != id {
			err = fmt.Errorf("%w: %q answered where %q was called", ErrUnknownPeer, peer, id)
		}
		return err
	}
	return c
}

// peer names the node whose key the other end has proven to hold.
func (p *pins) peer(cs tls.ConnectionState) (string, error) {
	if cs.NegotiatedProtocol != alpn {
		return "", fmt.Errorf("%w: it does not speak %s", ErrUnknownPeer, alpn)
	}
	if len(cs.PeerCertificates) != 1 {
		return "", fmt.Errorf("%w: %d certificates", ErrUnknownPeer, len(cs.PeerCertificates))
	}
	key, ok := cs.PeerCertificates[0].PublicKey.(ed25519.PublicKey)
	if !ok {
		return "", fmt.Errorf("%w: not an Ed25519 key", ErrUnknownPeer)
	}
	found, ok := p.roster.holder(key)
	if !ok {
		sum := sha256.Sum256(key)
		return "", fmt.Errorf("%w: SHA-256 of the key offered: %x", ErrUnknownPeer, sum[:8])
	}
	return found, nil
}
