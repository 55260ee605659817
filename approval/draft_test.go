package approval

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// TestDraftIsATx compares a draft over a store with writing to the store.
func TestDraftIsATx(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		base, plain := newMemory(), newMemory()
		key := rapid.StringMatching(`[ab]{1,3}`)
		fill := rapid.MapOf(key, rapid.String()).Draw(t, "base")
		for k, v := range fill {
			base.Put([]byte(k), []byte(v))
			plain.Put([]byte(k), []byte(v))
		}
		before := base.fingerprint()
		d := newDraft(base)
		scan := func(r Reader, prefix, from string, limit int) [][2]string {
			var got [][2]string
			var start []byte
			if from != "" {
				start = []byte(from)
			}
			r.Scan([]byte(prefix), start, func(k, v []byte) bool {
				got = append(got, [2]string{string(k), string(v)})
				return len(got) < limit
			})
			return got
		}
		for range rapid.IntRange(0, 20).Draw(t, "steps") {
			k, v := key.Draw(t, "key"), rapid.String().Draw(t, "value")
			switch rapid.IntRange(0, 3).Draw(t, "write") {
			case 0:
				d.Delete([]byte(k))
				plain.Delete([]byte(k))
			case 1:
				d.Append([]byte(v))
				plain.Append([]byte(v))
			default:
				d.Put([]byte(k), []byte(v))
				plain.Put([]byte(k), []byte(v))
			}
			prefix, from := rapid.StringMatching(`[ab]{0,2}`).Draw(t, "prefix"), rapid.StringMatching(`[ab]{0,3}`).Draw(t, "from")
			limit := rapid.IntRange(1, 5).Draw(t, "limit")
			if diff := cmp.Diff(scan(plain, prefix, from, limit), scan(d, prefix, from, limit)); diff != "" {
				t.Fatalf("scan (-store +draft):\n%s", diff)
			}
			if got, want := d.Get([]byte(k)), plain.Get([]byte(k)); string(got) != string(want) || (got == nil) != (want == nil) {
				t.Fatalf("get %q: %q, want %q", k, got, want)
			}
		}
		if base.fingerprint() != before {
			t.Fatal("a draft wrote to its base")
		}
		d.commit()
		if base.fingerprint() != plain.fingerprint() {
			t.Fatal("the commit is another state")
		}
	})
}

// broken is a store whose disk fails after some reads.
type broken struct {
	*memory
	left int
}

func (b *broken) read() {
	if b.left--; b.left < 0 {
		panic("disk")
	}
}

func (b *broken) Get(key []byte) []byte {
	b.read()
	return b.memory.Get(key)
}

func (b *broken) Scan(prefix, from []byte, fn func(k, v []byte) bool) {
	b.read()
	b.memory.Scan(prefix, from, func(k, v []byte) bool {
		b.read()
		return fn(k, v)
	})
}

// TestBrokenStore lets the store fail at every read of every command: none may
// be answered as if it were refused, which the other nodes would not do.
func TestBrokenStore(t *testing.T) {
	t.Parallel()
	w := busyWorld(t)
	for _, c := range fittingCommands(w) {
		data, err := c.Encode()
		if err != nil {
			t.Fatal(err)
		}
		for left := 0; ; left++ {
			result, failed := applyBroken(&broken{w.a.clone(), left}, w.index+1, data)
			if failed {
				continue
			}
			if result.Err != nil {
				t.Errorf("%s after %d reads: %+v", c.Body.kind(), left, result)
			}
			break
		}
	}
}

func applyBroken(tx Tx, index uint64, data []byte) (result Result, failed bool) {
	defer func() { failed = recover() != nil }()
	return Apply(tx, index, data), false
}
