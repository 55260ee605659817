package approval

import (
	"fmt"
	"slices"
	"strings"
)

// draft is a Tx over another that keeps what is written to itself, so that a
// command which is refused halfway has written nothing.
type draft struct {
	base    Tx
	writes  map[string][]byte // nil: deleted
	records [][]byte          // appended
	err     error             // the first object that could not be encoded

	// inBase is true while the base is at work: a panic then is a broken disk,
	// not a broken command.
	inBase bool
}

func newDraft(base Tx) *draft { return &draft{base: base, writes: map[string][]byte{}} }

// Get implements Reader.
func (d *draft) Get(key []byte) []byte {
	if v, ok := d.writes[string(key)]; ok {
		return v
	}
	d.inBase = true
	v := d.base.Get(key)
	d.inBase = false
	return v
}

// Put implements Tx.
func (d *draft) Put(key, value []byte) {
	if value == nil {
		value = []byte{}
	}
	d.writes[string(key)] = value
}

// Delete implements Tx.
func (d *draft) Delete(key []byte) { d.writes[string(key)] = nil }

// Append implements Tx.
func (d *draft) Append(record []byte) { d.records = append(d.records, record) }

// Scan implements Reader. It shows what was written before the scan began.
func (d *draft) Scan(prefix, from []byte, fn func(k, v []byte) bool) {
	var mine []string
	for k := range d.writes {
		if strings.HasPrefix(k, string(prefix)) && k >= string(from) {
			mine = append(mine, k)
		}
	}
	slices.Sort(mine)
	more := true
	// show hands out what was written here of the keys below limit.
	show := func(limit []byte) {
		for more && len(mine) > 0 && (limit == nil || mine[0] < string(limit)) {
			if v := d.writes[mine[0]]; v != nil {
				more = fn([]byte(mine[0]), v)
			}
			mine = mine[1:]
		}
	}
	d.inBase = true
	d.base.Scan(prefix, from, func(k, v []byte) bool {
		d.inBase = false
		show(k)
		if more && len(mine) > 0 && mine[0] == string(k) {
			v, mine = d.writes[mine[0]], mine[1:]
		}
		if more && v != nil {
			more = fn(k, v)
		}
		d.inBase = true
		return more
	})
	d.inBase = false
	show(nil)
}

// commit writes everything to the base, in the order of the keys, then the
// records.
func (d *draft) commit() {
	keys := make([]string, 0, len(d.writes))
	for k := range d.writes {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		if v := d.writes[k]; v != nil {
			d.base.Put([]byte(k), v)
		} else {
			d.base.Delete([]byte(k))
		}
	}
	for _, record := range d.records {
		d.base.Append(record)
	}
}

// save writes a record.
func (d *draft) save(key []byte, record any) {
	data, err := encoder.Marshal(record)
	if err != nil {
		d.fail(fmt.Errorf("approval: encode record at %q: %w", key, err))
		return
	}
	d.Put(key, data)
}

// fail has the command refused, whatever else it did.
func (d *draft) fail(err error) {
	if d.err == nil {
		d.err = err
	}
}

// mark writes an index key that has nothing to say besides being there.
func (d *draft) mark(key []byte) { d.Put(key, []byte{1}) }

// unmark takes it away.
func (d *draft) unmark(key []byte) { d.Delete(key) }

// has says whether a key is there.
func (d *draft) has(key []byte) bool { return d.Get(key) != nil }
