package control

import (
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
)

// maxCallers is how many callers whose calls are forwarded here a node
// remembers.
const maxCallers = 1024

// callerCache remembers the chains that followers have handed on with the calls
// of one caller, and that were found good: a follower sends the same one with
// each of them. Whether it still is good is asked at each use, as on an open
// connection.
type callerCache struct {
	mu    sync.Mutex
	known map[[sha256.Size]byte]*caller // guarded by mu; by the header's hash
}

func (c *callerCache) get(key [sha256.Size]byte) *caller {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.known[key]
}

// put adds a caller. A full cache is emptied: the callers that are at work are
// back at their next call.
func (c *callerCache) put(key [sha256.Size]byte, who *caller) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known == nil || len(c.known) >= maxCallers {
		c.known = make(map[[sha256.Size]byte]*caller)
	}
	c.known[key] = who
}

func (c *callerCache) drop(key [sha256.Size]byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.known, key)
}

// errNoCaller is returned when a forwarded call names nobody.
var errNoCaller = errors.New("no caller")

// forwardedCaller returns the caller whose chain a follower handed on.
func (n *node) forwardedCaller(header []string) (*caller, error) {
	if len(header) != 1 {
		return nil, fmt.Errorf("%w: %d chains", errNoCaller, len(header))
	}
	return n.handedOn(sha256.Sum256([]byte(header[0])), func() ([]*x509.Certificate, error) { return parseChain(header[0]) })
}

// handedCaller is forwardedCaller for a chain that came on a stream of calls.
func (n *node) handedCaller(c *handedChain) (*caller, error) {
	if c == nil {
		return nil, fmt.Errorf("%w: no chain", errNoCaller)
	}
	return n.handedOn(c.key, func() ([]*x509.Certificate, error) { return x509.ParseCertificates(c.der) })
}

// handedOn returns the caller of a chain that is known by a key, or is read anew.
func (n *node) handedOn(key [sha256.Size]byte, read func() ([]*x509.Certificate, error)) (*caller, error) {
	if who := n.callers.get(key); who != nil {
		if !n.over(who) {
			return who, nil
		}
		n.callers.drop(key)
	}
	chain, err := read()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoCaller, err)
	}
	who, err := n.verifier.verify(chain)
	if err == nil {
		n.callers.put(key, who)
	}
	return who, err
}
