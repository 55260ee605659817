package proxy

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// maxChains bounds how many verified chains are remembered: some 10 KB each.
const maxChains = 1024

// chainCache remembers which presented chains lead to a root, as verifying the
// same signatures again at every connection of a client is half of a handshake.
//
// It remembers only what is true for ever of those bytes under those roots: that
// the signatures, constraints and usages hold. What changes is asked at every
// connection: the dates of every certificate of a chain here; revocation, denied
// issuers, the scope and the service by the caller; and that the client holds the
// key, by TLS. It belongs to one material and goes with it, so that a chain
// verified under roots that are in force no more is not found (a root that was
// taken out because its key was stolen has signed for the thief just before).
//
// The key is a hash of all that was presented and not of the leaf: an attacker who
// holds a good leaf could else put certificates of his own behind it, and they
// would be recorded as the issuers of it. Only good chains are kept: whoever shows
// bad ones displaces nobody.
type chainCache struct {
	mu    sync.Mutex // owns what follows
	found map[chainKey]*verifiedChain
	order []chainKey // as they came in; a ring once it is full
	next  int
}

type chainKey [sha256.Size]byte

// verifiedChain is what x509svid.Verify returned. It is never changed.
type verifiedChain struct {
	id     spiffeid.ID
	chains [][]*x509.Certificate
}

func newChainCache() *chainCache { return &chainCache{found: make(map[chainKey]*verifiedChain)} }

// keyOf hashes the chain and the domain whose roots it is verified with.
func keyOf(chain []*x509.Certificate, td spiffeid.TrustDomain) chainKey {
	h := sha256.New()
	write := func(b []byte) { // with its length: two certificates are not one that is as long
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(b)))
		_, _ = h.Write(n[:]) // a hash takes everything
		_, _ = h.Write(b)
	}
	write([]byte(td.Name()))
	for _, c := range chain {
		write(c.Raw)
	}
	return chainKey(h.Sum(nil))
}

// verify is x509svid.Verify of a presented chain at a moment.
func (v *chainCache) verify(chain []*x509.Certificate, bundle *x509bundle.Bundle, now time.Time) (spiffeid.ID, [][]*x509.Certificate, error) {
	key := keyOf(chain, bundle.TrustDomain())
	v.mu.Lock()
	known := v.found[key]
	v.mu.Unlock()
	if known != nil {
		if valid := known.at(now); len(valid) > 0 {
			return known.id, valid, nil
		}
		// Whatever is wrong with it now is said by the verification.
	}
	id, chains, err := x509svid.Verify(chain, bundle, x509svid.WithTime(now))
	if err == nil {
		v.keep(key, &verifiedChain{id, chains})
	}
	return id, chains, err
}

// at gives the chains of which every certificate is valid.
func (c *verifiedChain) at(now time.Time) [][]*x509.Certificate {
	good := func(chain []*x509.Certificate) bool {
		for _, cert := range chain {
			if now.Before(cert.NotBefore) || now.After(cert.NotAfter) {
				return false
			}
		}
		return true
	}
	var valid [][]*x509.Certificate
	for _, chain := range c.chains {
		if good(chain) {
			valid = append(valid, chain)
		}
	}
	return valid
}

// keep remembers a chain, in the place of the oldest when there are too many.
func (v *chainCache) keep(key chainKey, c *verifiedChain) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if _, known := v.found[key]; known {
		v.found[key] = c
		return
	}
	if len(v.order) < maxChains {
		v.order = append(v.order, key)
	} else {
		delete(v.found, v.order[v.next])
		v.order[v.next] = key
		v.next = (v.next + 1) % maxChains
	}
	v.found[key] = c
}
