package proxy

import (
	"container/list"
	"errors"
	"strconv"
	"strings"
	"sync"
	"time"
)

// rate is how much may come in how long; the zero rate is no limit. As much as
// that may come at once, after a while without any.
type rate struct {
	many int
	in   time.Duration
}

var errRate = errors.New("no rate")

func readRate(text string) (rate, error) {
	if text == "" {
		return rate{}, nil
	}
	many, per, _ := strings.Cut(text, "/")
	n, err := strconv.Atoi(many)
	in := map[string]time.Duration{"s": time.Second, "m": time.Minute, "h": time.Hour}[per]
	if err != nil || n < 1 || n > 1e6 || in == 0 || many != strconv.Itoa(n) {
		return rate{}, errRate
	}
	return rate{many: n, in: in}, nil
}

// maxMeters bounds how many holders are metered at once. Whoever is forgotten
// starts with a full bucket: one who can come under this many names, each of which
// takes a certificate, gets as much as that many may.
const maxMeters = 1 << 16

// meters hold a bucket for each holder, the one that was used last at the front.
type meters struct {
	mu   sync.Mutex
	by   map[string]*list.Element // guarded by mu; of *meter
	used list.List                // guarded by mu
}

type meter struct {
	holder string
	left   float64
	at     time.Time
}

// take takes one out of a holder's bucket. When there is none it says how long it
// takes until there is. A clock that goes back fills nothing.
func (m *meters) take(holder string, r rate, now time.Time) (wait time.Duration, ok bool) {
	if r.many == 0 {
		return 0, true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	b := m.of(holder, r, now)
	perToken := float64(r.in) / float64(r.many)
	if passed := now.Sub(b.at); passed > 0 {
		b.left = min(float64(r.many), b.left+float64(passed)/perToken)
	}
	b.at = now
	if b.left < 1 {
		return time.Duration((1 - b.left) * perToken), false
	}
	b.left--
	return 0, true
}

// of is the holder's bucket. Call with mu held.
func (m *meters) of(holder string, r rate, now time.Time) *meter {
	if m.by == nil {
		m.by = map[string]*list.Element{}
	}
	if e := m.by[holder]; e != nil {
		m.used.MoveToFront(e)
		if b, ok := e.Value.(*meter); ok {
			return b
		}
	}
	if len(m.by) >= maxMeters {
		if b, ok := m.used.Remove(m.used.Back()).(*meter); ok {
			delete(m.by, b.holder)
		}
	}
	b := &meter{holder: holder, left: float64(r.many), at: now}
	m.by[holder] = m.used.PushFront(b)
	return b
}
