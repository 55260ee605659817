package raftstore

import (
	"bytes"
	"slices"

	"go.etcd.io/bbolt"
)

// boltTx is the Reader and the Tx over one bbolt transaction. What is written waits in memory, in the order of its keys,
// until flush: commands that are applied together change the same few pairs again and again, and bbolt and the sum take in
// only what comes of it.
type boltTx struct {
	content content // its sum is that of the bucket: without what waits
	bucket  *bbolt.Bucket
	waiting map[string]*write
	order   []*write // what waits, ascending by key
	records [][]byte // appended in this transaction
	changed bool     // something was written, whatever came of it
}

// write is a pair to be put, or to be deleted when value is nil.
type write struct{ key, value []byte }

func newBoltTx(tx *bbolt.Tx) (*boltTx, error) {
	t := newBoltReader(tx)
	c, err := readContent(tx)
	t.content = c
	return t, err
}

// newBoltReader is newBoltTx for who writes nothing: its content is not filled in.
func newBoltReader(tx *bbolt.Tx) *boltTx { return &boltTx{bucket: tx.Bucket([]byte(bucketState))} }

// find returns the place in order of the key, or where it would be.
func (t *boltTx) find(key []byte) (i int, ok bool) {
	return slices.BinarySearchFunc(t.order, key, func(w *write, key []byte) int { return bytes.Compare(w.key, key) })
}

func (t *boltTx) Get(key []byte) []byte {
	if len(key) == 0 {
		return nil
	}
	if w, ok := t.waiting[string(key)]; ok {
		return w.value
	}
	return t.bucket.Get(key)
}

// Scan merges the bucket, which nothing changes meanwhile, with what waits, which its own fn may add to.
func (t *boltTx) Scan(prefix, from []byte, fn func(k, v []byte) bool) {
	at, begun := prefix, false // the least key to hand out, or once begun the last that was
	if bytes.Compare(from, prefix) > 0 {
		at = from
	}
	c := t.bucket.Cursor()
	k, v := c.Seek(at)
	i, known := 0, -1 // the place of the next that waits, as long as so many wait
	for {
		if known != len(t.order) {
			var ok bool
			if i, ok = t.find(at); ok && begun {
				i++
			}
			known = len(t.order)
		}
		switch {
		case i < len(t.order) && bytes.HasPrefix(t.order[i].key, prefix) && (k == nil || bytes.Compare(t.order[i].key, k) <= 0):
			w := t.order[i]
			i++
			at = w.key
			if bytes.Equal(at, k) {
				k, v = c.Next()
			}
			if w.value != nil && !fn(at, w.value) {
				return
			}
		case k != nil && bytes.HasPrefix(k, prefix):
			at = k
			if !fn(k, v) {
				return
			}
			k, v = c.Next()
		default:
			return
		}
		begun = true
	}
}

func (t *boltTx) Put(key, value []byte) {
	// Present with no bytes is not nil; the caller may reuse its buffer.
	own := make([]byte, len(value))
	copy(own, value)
	t.set(key, own)
}

func (t *boltTx) Delete(key []byte) { t.set(key, nil) }

func (t *boltTx) set(key, value []byte) {
	t.changed = true
	if w, ok := t.waiting[string(key)]; ok {
		w.value = value
		return
	}
	w := &write{key: bytes.Clone(key), value: value}
	if t.waiting == nil {
		t.waiting = make(map[string]*write)
	}
	t.waiting[string(w.key)] = w
	i, _ := t.find(key)
	t.order = slices.Insert(t.order, i, w)
}

func (t *boltTx) Append(record []byte) {
	t.changed = true
	t.records = append(t.records, bytes.Clone(record))
	t.content.records++
}

// flush writes what waits, in the order of its keys. After an error the transaction MUST NOT be committed.
func (t *boltTx) flush() error {
	for _, w := range t.order {
		old := t.bucket.Get(w.key)
		if old != nil {
			t.content.sum.remove(w.key, old)
		}
		var err error
		switch {
		case w.value != nil:
			t.content.sum.add(w.key, w.value)
			err = t.bucket.Put(w.key, w.value)
		case old != nil:
			err = t.bucket.Delete(w.key)
		}
		if err != nil {
			return err
		}
	}
	t.order = t.order[:0]
	clear(t.waiting)
	return nil
}
