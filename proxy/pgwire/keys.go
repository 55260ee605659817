package pgwire

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"sync"
)

// Keys are the cancel keys of the sessions of type S that there are. The zero Keys has none.
//
// A key is random in all its bits, the process id included: 63 of them for clients that know version 3.0 of the protocol,
// 287 for those of 3.2. Comparing takes the same time wherever it differs.
type Keys[S any] struct {
	mu  sync.Mutex // owns all
	all map[uint32]keyed[S]
}

type keyed[S any] struct {
	secret  []byte
	session S
}

// errKeys is returned when no free process id was found.
var errKeys = errors.New("no free process id")

// Issue makes a key for a session, for a client that asked for version 3.minor of the protocol.
func (k *Keys[S]) Issue(minor uint16, session S) (Cancel, error) {
	size := 4
	if minor >= 2 {
		size = 32
	}
	secret := make([]byte, size)
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.all == nil {
		k.all = make(map[uint32]keyed[S])
	}
	for range 100 {
		var raw [4]byte
		if _, err := rand.Read(raw[:]); err != nil {
			return Cancel{}, err
		}
		if _, err := rand.Read(secret); err != nil {
			return Cancel{}, err
		}
		pid := binary.BigEndian.Uint32(raw[:]) &^ (1 << 31) // clients take it for a signed number
		if _, taken := k.all[pid]; taken || pid == 0 {
			continue
		}
		k.all[pid] = keyed[S]{secret, session}
		return Cancel{pid, secret}, nil
	}
	return Cancel{}, errKeys
}

// Revoke forgets a key.
func (k *Keys[S]) Revoke(c Cancel) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.all, c.PID)
}

// Find is the session whose key c is.
func (k *Keys[S]) Find(c Cancel) (S, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	found, ok := k.all[c.PID]
	secret := found.secret
	if !ok {
		secret = make([]byte, len(c.Secret)) // compared as well, so that a free process id takes no less time
	}
	if subtle.ConstantTimeCompare(secret, c.Secret) == 1 && ok {
		return found.session, true
	}
	var none S
	return none, false
}
