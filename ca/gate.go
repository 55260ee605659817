package ca

import (
	"crypto"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"io"
	"sync"

	"github.com/smallstep/certificates/cas/apiv1"
	"github.com/smallstep/certificates/cas/softcas"
)

// tbsHash is the SHA-256 of a certificate's TBSCertificate. An ECDSA key on
// P-256 signs exactly this value, so the hash a quorum commits to is the very
// thing the issuer's key is asked to sign.
type tbsHash [32]byte

func (h tbsHash) String() string { return hex.EncodeToString(h[:]) }

// gate is an issuer's private key behind the list of what was committed. Its
// Sign is the only use of the key in this package: code that reaches the signer
// some other way (a new smallstep call, a certificate made by hand) still cannot
// have anything signed that no one committed.
type gate struct {
	key crypto.Signer

	mu   sync.Mutex
	open map[tbsHash]struct{} // guarded by mu: committed, not yet signed
}

func newGate(key crypto.Signer) *gate {
	return &gate{key: key, open: make(map[tbsHash]struct{})}
}

// commit lets the key sign h once. The returned function takes that back.
func (g *gate) commit(h tbsHash) (done func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open[h] = struct{}{}
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.open, h)
	}
}

func (g *gate) committed(h tbsHash) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, ok := g.open[h]
	return ok
}

// Public implements crypto.Signer.
func (g *gate) Public() crypto.PublicKey { return g.key.Public() }

// Sign implements crypto.Signer for digests that were committed, once each.
func (g *gate) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if opts.HashFunc() != crypto.SHA256 || len(digest) != len(tbsHash{}) {
		return nil, fmt.Errorf("%w: the issuer signs SHA-256 only", ErrNotCommitted)
	}
	h := tbsHash(digest)
	g.mu.Lock()
	_, ok := g.open[h]
	delete(g.open, h)
	g.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("%w: no commit of TBS %s", ErrNotCommitted, h)
	}
	return g.key.Sign(rand, digest, opts)
}

// gatedCAS is the certificate authority that smallstep's code sees: softcas, but
// only for what was committed. RequestID is the hex hash of the TBSCertificate.
type gatedCAS struct {
	soft *softcas.SoftCAS
	gate *gate
}

var _ apiv1.CertificateAuthorityService = (*gatedCAS)(nil)

func newGatedCAS(cert *x509.Certificate, key crypto.Signer) *gatedCAS {
	g := newGate(key)
	return &gatedCAS{
		gate: g,
		soft: &softcas.SoftCAS{CertificateChain: []*x509.Certificate{cert}, Signer: g},
	}
}

// CreateCertificate signs the request's template if its TBSCertificate was
// committed under the request's id.
func (c *gatedCAS) CreateCertificate(req *apiv1.CreateCertificateRequest) (*apiv1.CreateCertificateResponse, error) {
	raw, err := hex.DecodeString(req.RequestID)
	if err != nil || len(raw) != len(tbsHash{}) || !c.gate.committed(tbsHash(raw)) {
		return nil, fmt.Errorf("%w: no ticket for request %q", ErrNotCommitted, req.RequestID)
	}
	resp, err := c.soft.CreateCertificate(req)
	if err != nil {
		return nil, fmt.Errorf("ca: sign: %w", err)
	}
	return resp, nil
}

// RenewCertificate refuses: smallstep renews without asking anyone, and a
// renewal is one more certificate of a grant, committed like the first.
func (c *gatedCAS) RenewCertificate(*apiv1.RenewCertificateRequest) (*apiv1.RenewCertificateResponse, error) {
	return nil, fmt.Errorf("%w: certificates are not renewed, a new one is committed and signed", ErrRefused)
}

// RevokeCertificate refuses: smallstep's revocation is a note in its own
// database. Revoking is a command of the cluster.
func (c *gatedCAS) RevokeCertificate(*apiv1.RevokeCertificateRequest) (*apiv1.RevokeCertificateResponse, error) {
	return nil, fmt.Errorf("%w: revocation is a command of the cluster", ErrRefused)
}
