package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"io"
	"sync"

	"github.com/smallstep/certificates/cas/apiv1"
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

// gatedCAS is the one way from a TBSCertificate to a certificate: through the
// gate. To smallstep's code it is a certificate authority for what was
// committed; RequestID is the hex hash of the TBSCertificate.
type gatedCAS struct {
	cert *x509.Certificate
	gate *gate
}

var _ apiv1.CertificateAuthorityService = (*gatedCAS)(nil)

func newGatedCAS(cert *x509.Certificate, key crypto.Signer) *gatedCAS {
	return &gatedCAS{cert: cert, gate: newGate(key)}
}

// sign makes the certificate of a TBSCertificate whose hash was committed.
func (c *gatedCAS) sign(tbs []byte, h tbsHash) (*x509.Certificate, error) {
	signature, err := c.gate.Sign(rand.Reader, h[:], crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("ca: sign: %w", err)
	}
	// A key in a device may answer with what is no signature, or another key's:
	// who gets the certificate would be the first to find out.
	if pub, ok := c.cert.PublicKey.(*ecdsa.PublicKey); !ok || !ecdsa.VerifyASN1(pub, h[:], signature) {
		return nil, fmt.Errorf("ca: sign: %w: the issuer's key has made a signature that does not verify", ErrKey)
	}
	der, err := assemble(tbs, signature)
	if err != nil {
		return nil, fmt.Errorf("ca: sign: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("ca: sign: %w", err)
	}
	// The gate has seen the hash; this sees the bytes that leave.
	if !bytes.Equal(cert.RawTBSCertificate, tbs) || hashOf(tbs) != h {
		return nil, fmt.Errorf("%w: the signed certificate is not the one prepared", ErrNotCommitted)
	}
	return cert, nil
}

// CreateCertificate signs the request's template if its TBSCertificate was
// committed under the request's id.
func (c *gatedCAS) CreateCertificate(req *apiv1.CreateCertificateRequest) (*apiv1.CreateCertificateResponse, error) {
	raw, err := hex.DecodeString(req.RequestID)
	if err != nil || len(raw) != len(tbsHash{}) || !c.gate.committed(tbsHash(raw)) {
		return nil, fmt.Errorf("%w: no ticket for request %q", ErrNotCommitted, req.RequestID)
	}
	if req.Template == nil {
		return nil, fmt.Errorf("%w: request %q has no template", ErrInvalid, req.RequestID)
	}
	tbs, err := draft(req.Template, c.cert)
	if err != nil {
		return nil, err
	}
	if hashOf(tbs) != tbsHash(raw) {
		return nil, fmt.Errorf("%w: the template is not that of request %q", ErrNotCommitted, req.RequestID)
	}
	cert, err := c.sign(tbs, tbsHash(raw))
	if err != nil {
		return nil, err
	}
	return &apiv1.CreateCertificateResponse{Certificate: cert, CertificateChain: []*x509.Certificate{c.cert}}, nil
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
