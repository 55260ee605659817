package approval

import (
	"bytes"
	"fmt"
)

// keysOf visits what the lists under the prefixes name, the newest first, each
// once though it be on several lists; after those up to the one given, which is
// turned, as it stands in keys. An error is of a key that is none of a list.
func keysOf(r Reader, prefixes [][]byte, after *uid) func(visit func(u uid, k, v []byte) bool) error {
	return func(visit func(u uid, k, v []byte) bool) (err error) {
		if len(prefixes) == 1 {
			r.Scan(prefixes[0], behind(prefixes[0], after), func(k, v []byte) bool {
				var u uid
				if u, err = listed(prefixes[0], k); err != nil {
					return false
				}
				return visit(u.turned(), k, v)
			})
			return err
		}
		heads := make([]head, len(prefixes))
		for i, p := range prefixes {
			if heads[i], err = headOf(r, p, after); err != nil {
				return err
			}
		}
		for {
			next := newest(heads)
			if next == nil {
				return nil
			}
			u := next.u
			if !visit(u.turned(), next.k, next.v) {
				return nil
			}
			for i, p := range prefixes {
				if heads[i].k != nil && heads[i].u == u {
					if heads[i], err = headOf(r, p, &u); err != nil {
						return err
					}
				}
			}
		}
	}
}

// head is what comes next on a list. Without a key the list has ended.
type head struct {
	u    uid // turned
	k, v []byte
}

func headOf(r Reader, prefix []byte, after *uid) (h head, err error) {
	r.Scan(prefix, behind(prefix, after), func(k, v []byte) bool {
		h.k, h.v = bytes.Clone(k), bytes.Clone(v)
		h.u, err = listed(prefix, k)
		return false
	})
	return h, err
}

// newest is the head to go on with, nil at the end of all lists.
func newest(heads []head) *head {
	var best *head
	for i := range heads {
		if h := &heads[i]; h.k != nil && (best == nil || bytes.Compare(h.u[:], best.u[:]) < 0) {
			best = h
		}
	}
	return best
}

// behind is where a list goes on after an id.
func behind(prefix []byte, after *uid) []byte {
	if after == nil {
		return nil
	}
	return append(append(bytes.Clone(prefix), after[:]...), 0)
}

func listed(prefix, k []byte) (u uid, err error) {
	if len(k) != len(prefix)+len(u) {
		return u, fmt.Errorf("approval: stored index key %q", k)
	}
	return uid(k[len(prefix):]), nil
}
