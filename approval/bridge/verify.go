package bridge

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"
)

const (
	// window is how far a call's time may be off: Slack's own advice.
	window = 5 * time.Minute
	// maxSeen is how many calls are remembered, for twice the window and the second that times are cut to. Only calls that
	// Slack has signed count.
	maxSeen = 1 << 16

	headerSignature = "X-Slack-Signature"
	headerTime      = "X-Slack-Request-Timestamp"
)

var (
	errUnsigned = errors.New("not signed by Slack")
	errOld      = errors.New("its time is more than five minutes off")
)

// verify returns the signature of a call that Slack has sent within the window: over its
// version, its time and its body as it came.
func verify(secret []byte, h http.Header, body []byte, now time.Time) ([sha256.Size]byte, error) {
	var sent [sha256.Size]byte
	times, signatures := h.Values(headerTime), h.Values(headerSignature)
	if len(times) != 1 || len(signatures) != 1 {
		return sent, errUnsigned
	}
	text := signatures[0]
	if len(text) != len("v0=")+hex.EncodedLen(sha256.Size) || text[:3] != "v0=" {
		return sent, errUnsigned
	}
	if _, err := hex.Decode(sent[:], []byte(text[3:])); err != nil {
		return sent, errUnsigned
	}
	mac := hmac.New(sha256.New, secret)
	_, _ = fmt.Fprintf(mac, "v0:%s:%s", times[0], body) // it never fails
	if !hmac.Equal(mac.Sum(nil), sent[:]) {
		return sent, errUnsigned
	}
	at, err := strconv.ParseInt(times[0], 10, 64)
	if err != nil {
		return sent, errUnsigned
	}
	if off := now.Unix() - at; off > int64(window.Seconds()) || off < -int64(window.Seconds()) {
		// Whoever has recorded a call would send it when it suits.
		return sent, errOld
	}
	return sent, nil
}

// memory knows the calls of the window: whoever repeats one within it does nothing.
type memory struct {
	mu   sync.Mutex
	seen map[[sha256.Size]byte]time.Time // guarded by mu: until when
}

// first says whether a call is here for the first time; full, that too many are
// remembered to say so.
func (m *memory) first(signature [sha256.Size]byte, now time.Time) (first, full bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if until, ok := m.seen[signature]; ok && now.Before(until) {
		return false, false
	}
	if len(m.seen) >= maxSeen {
		for s, until := range m.seen {
			if !now.Before(until) {
				delete(m.seen, s)
			}
		}
		if len(m.seen) >= maxSeen {
			return false, true
		}
	}
	m.seen[signature] = now.Add(2*window + time.Second)
	return true, false
}
