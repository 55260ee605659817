package audit_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"golang.org/x/mod/sumdb/note"
	"pgregory.net/rapid"

	"github.com/hallpass/hallpass/audit"
)

// doctored is an export of ten entries that edits have been made to.
type doctored struct {
	t     *testing.T
	lines []string
}

// edit runs one line of the tests' language:
//
//	change I TEXT   put another object into entry I
//	drop I          take entry I out
//	swap I J        exchange two entries
//	copy I J        put a copy of entry I before entry J
//	forge J         put a new entry, numbered J, before entry J
//	renumber        give every entry the index of its place
//	cut I           end before entry I
//	half I          end in the middle of entry I
//	blank I         put an empty line before entry I
//	space I         put a space before entry I
//	crlf I          end entry I with CR LF
//	long I          make entry I endless
func (d *doctored) edit(command string) {
	d.t.Helper()
	f := strings.Fields(command)
	i, j := number(f, 1), number(f, 2)
	switch f[0] {
	case "change":
		d.lines[i] = d.with(d.lines[i], func(e *audit.Entry) { e.Object = f[2] })
	case "drop":
		d.lines = slices.Delete(d.lines, i, i+1)
	case "swap":
		d.lines[i], d.lines[j] = d.lines[j], d.lines[i]
	case "copy":
		d.lines = slices.Insert(d.lines, j, d.lines[i])
	case "forge":
		d.lines = slices.Insert(d.lines, i, d.with(d.lines[0], func(e *audit.Entry) { e.Index = uint64(i) }))
	case "renumber":
		for k, line := range d.lines {
			d.lines[k] = d.with(line, func(e *audit.Entry) { e.Index = uint64(k) })
		}
	case "cut":
		d.lines = d.lines[:i]
	case "half":
		d.lines = append(d.lines[:i], d.lines[i][:len(d.lines[i])/2])
	case "blank":
		d.lines = slices.Insert(d.lines, i, "")
	case "space":
		d.lines[i] = " " + d.lines[i]
	case "crlf":
		d.lines[i] += "\r"
	case "long":
		d.lines[i] += strings.Repeat(" ", audit.MaxBody)
	default:
		d.t.Fatalf("unknown edit %q", command)
	}
}

func number(f []string, i int) int {
	n := 0
	if i < len(f) {
		_, _ = fmt.Sscan(f[i], &n) // text stays 0
	}
	return n
}

func (d *doctored) with(line string, edit func(*audit.Entry)) string {
	d.t.Helper()
	e, err := audit.ParseEntry([]byte(line))
	if err != nil {
		d.t.Fatal(err)
	}
	edit(&e)
	body, err := e.Canonical()
	if err != nil {
		d.t.Fatal(err)
	}
	return string(body)
}

func lines(bodies [][]byte) []string {
	var out []string
	for _, b := range bodies {
		out = append(out, string(b))
	}
	return out
}

func join(lines []string) string {
	if len(lines) == 0 {
		return ""
	}
	return strings.Join(lines, "\n") + "\n"
}

func leafHashes(bodies [][]byte) string {
	var out []string
	for _, b := range bodies {
		out = append(out, audit.LeafHash(b).String())
	}
	return join(out)
}

func TestVerify(t *testing.T) {
	n1, n2 := newKey(t, "acme.test", "n1"), newKey(t, "acme.test", "n2")
	h := newHistory(t, 10)
	head := h.checkpoint(t, 10)
	for _, entries := range []string{join(lines(h.bodies)), strings.TrimSuffix(join(lines(h.bodies)), "\n")} {
		report, err := audit.Verify(iotest.OneByteReader(strings.NewReader(entries)), sign(t, head, n1, n2), verifiers(t, n2))
		if err != nil {
			t.Fatal(err)
		}
		if report.TrustDomain != "acme.test" || report.Epoch != 1 || report.Checkpoint != head ||
			!slices.Equal(report.Signers, []string{n2.Name()}) || !report.First.Equal(noon) || !report.Last.Equal(noon) {
			t.Errorf("report = %+v", report)
		}
	}
	empty := h.checkpoint(t, 0)
	report, err := audit.Verify(strings.NewReader(""), sign(t, empty, n1), verifiers(t, n1))
	if err != nil || report.Checkpoint.Size != 0 || !report.First.IsZero() {
		t.Errorf("an empty log: %+v, %v", report, err)
	}
	if _, err := audit.Verify(strings.NewReader(join(lines(h.bodies))), sign(t, head, n1), verifiers(t, n2)); !errors.Is(err, audit.ErrCheckpoint) {
		t.Errorf("a checkpoint by an unknown key: %v, want ErrCheckpoint", err)
	}
	broken := errors.New("the disk is gone")
	if _, err := audit.Verify(iotest.ErrReader(broken), sign(t, head, n1), verifiers(t, n1)); !errors.Is(err, broken) || errors.Is(err, audit.ErrTampered) {
		t.Errorf("a failing reader: %v, want its own error", err)
	}
}

// Each edit of an export is found, and named as well as the evidence allows:
// "index" is the entry the error names, "from-to" where the first wrong one
// lies. The auditor holds the checkpoint; with "older", also those over 3 and
// 6 entries; with "leaves", also the list of leaf hashes.
func TestVerifyFindsTampering(t *testing.T) {
	for _, c := range []struct {
		edits  string
		holds  string
		index  int64
		from   int64
		to     int64
		reason string
	}{
		{"change 4 mallory", "", -1, 0, 9, "root differs"},
		{"change 4 mallory", "older", -1, 3, 5, "root differs"},
		{"change 0 mallory", "older", -1, 0, 2, "root differs"},
		{"change 9 mallory", "older", -1, 6, 9, "root differs"},
		{"change 4 mallory", "leaves", 4, 4, 4, "not what was logged"},
		{"change 4 mallory; change 7 mallory", "older leaves", 4, 4, 4, "not what was logged"},
		{"drop 4", "", 4, 0, 4, "entry 5 stands in its place"},
		{"drop 0", "", 0, 0, 0, "entry 1 stands in its place"},
		{"drop 4", "older", 4, 3, 4, "entry 5 stands in its place"},
		{"drop 9", "", 9, 0, 9, "missing, and all after it: the checkpoint covers 10"},
		{"cut 0", "", 0, 0, 0, "missing"},
		{"cut 6", "older", 6, 6, 6, "missing"},
		{"change 1 mallory; cut 6", "older", 6, 0, 2, "missing"},
		{"drop 4; renumber", "", 9, 0, 9, "missing"},
		{"drop 4; forge 9; renumber", "", -1, 0, 9, "root differs"},
		{"drop 4; forge 9; renumber", "leaves", 4, 4, 4, "not what was logged"},
		{"swap 2 5", "", 2, 0, 2, "entry 5 stands in its place"},
		{"swap 2 5; renumber", "", -1, 0, 9, "root differs"},
		{"swap 2 5; renumber", "older leaves", 2, 2, 2, "not what was logged"},
		{"copy 3 4", "", 4, 0, 4, "a second time"},
		{"copy 3 10", "", 10, 0, 10, "not covered by the checkpoint"},
		{"forge 5", "", 6, 0, 6, "entry 5 stands in its place a second time"},
		{"forge 5; renumber", "", 10, 0, 10, "not covered by the checkpoint"},
		{"forge 5; renumber", "older", 10, 3, 5, "not covered by the checkpoint"},
		{"forge 10", "", 10, 0, 10, "not covered by the checkpoint"},
		{"half 4", "", 4, 0, 4, "malformed"},
		{"blank 4", "", 4, 0, 4, "malformed"},
		{"blank 10", "", 10, 0, 10, "not covered by the checkpoint"},
		{"space 4", "", 4, 0, 4, "canonical"},
		{"crlf 4", "", 4, 0, 4, "canonical"},
		{"long 4", "", 4, 0, 4, "longer than any entry"},
	} {
		t.Run(c.edits+" "+c.holds, func(t *testing.T) {
			key := newKey(t, "acme.test", "n1")
			h := newHistory(t, 10)
			d := &doctored{t: t, lines: lines(h.bodies)}
			for command := range strings.SplitSeq(c.edits, "; ") {
				d.edit(command)
			}
			ev := audit.Evidence{
				Entries:    strings.NewReader(join(d.lines)),
				Checkpoint: sign(t, h.checkpoint(t, 10), key), Verifiers: verifiers(t, key),
			}
			if strings.Contains(c.holds, "older") {
				ev.Older = [][]byte{sign(t, h.checkpoint(t, 6), key), sign(t, h.checkpoint(t, 3), key)}
			}
			if strings.Contains(c.holds, "leaves") {
				ev.Leaves = strings.NewReader(leafHashes(h.bodies))
			}
			report, err := ev.Verify()
			var tampered *audit.TamperError
			if !errors.Is(err, audit.ErrTampered) || !errors.As(err, &tampered) {
				t.Fatalf("Verify = %+v, %v; want a TamperError", report, err)
			}
			if tampered.Index != c.index || tampered.From != c.from || tampered.To != c.to || !strings.Contains(err.Error(), c.reason) {
				t.Errorf("%v (index %d, from %d to %d); want index %d, from %d to %d, %q",
					err, tampered.Index, tampered.From, tampered.To, c.index, c.from, c.to, c.reason)
			}
		})
	}
}

// Leaf hashes are not evidence: doctored to fit doctored entries, they must
// neither clear them nor name anything.
func TestVerifyDoctoredLeaves(t *testing.T) {
	key := newKey(t, "acme.test", "n1")
	h := newHistory(t, 4)
	d := &doctored{t: t, lines: lines(h.bodies)}
	d.edit("change 2 mallory")
	var bodies [][]byte
	for _, line := range d.lines {
		bodies = append(bodies, []byte(line))
	}
	verify := func(entries []string, leaves string) error {
		_, err := audit.Evidence{
			Entries: strings.NewReader(join(entries)), Leaves: strings.NewReader(leaves),
			Checkpoint: sign(t, h.checkpoint(t, 4), key), Verifiers: verifiers(t, key),
		}.Verify()
		return err
	}
	var tampered *audit.TamperError
	if err := verify(d.lines, leafHashes(bodies)); !errors.As(err, &tampered) || tampered.Index != -1 {
		t.Errorf("both doctored: %v, want a TamperError that names no index", err)
	}
	if err := verify(lines(h.bodies), leafHashes(bodies)); err != nil {
		t.Errorf("only the leaves doctored: %v; the entries are true", err)
	}
	for name, leaves := range map[string]string{
		"none": "", "too few": leafHashes(h.bodies[:2]), "garbage": "!\n", "endless": strings.Repeat("a", audit.MaxBody+2),
	} {
		if err := verify(lines(h.bodies), leaves); err != nil {
			t.Errorf("%s leaf hashes: %v; the entries are true", name, err)
		}
		if err := verify(d.lines, leaves); !errors.As(err, &tampered) || tampered.Index != -1 {
			t.Errorf("%s leaf hashes: %v, want a TamperError that names no index", name, err)
		}
	}
	broken := errors.New("the disk is gone")
	_, err := audit.Evidence{
		Entries: strings.NewReader(join(lines(h.bodies))), Leaves: iotest.ErrReader(broken),
		Checkpoint: sign(t, h.checkpoint(t, 4), key), Verifiers: verifiers(t, key),
	}.Verify()
	if !errors.Is(err, broken) {
		t.Errorf("a failing reader of leaf hashes: %v, want its own error", err)
	}
}

func TestVerifyOlderCheckpoints(t *testing.T) {
	key := newKey(t, "acme.test", "n1")
	known := verifiers(t, key)
	h := newHistory(t, 10)
	at := func(size int64, epoch uint64) audit.Checkpoint {
		c := h.checkpoint(t, size)
		c.Origin = audit.Origin("acme.test", epoch)
		return c
	}
	bent := func(c audit.Checkpoint) audit.Checkpoint {
		c.Root[3] ^= 1
		return c
	}
	foreign := newKey(t, "other.test", "n1")
	elsewhere := at(3, 1)
	elsewhere.Origin = audit.Origin("other.test", 1)
	for _, c := range []struct {
		name  string
		older [][]byte
		want  error
		text  string
	}{
		{"prefixes", [][]byte{sign(t, at(0, 1), key), sign(t, at(9, 2), key), sign(t, at(10, 2), key)}, nil, ""},
		{"one twice", [][]byte{sign(t, at(3, 1), key), sign(t, at(3, 1), key)}, nil, ""},
		{"another past", [][]byte{sign(t, bent(at(5, 2)), key)}, audit.ErrFork, "their first 5"},
		{"another past between two true ones", [][]byte{sign(t, at(3, 2), key), sign(t, bent(at(5, 2)), key), sign(t, at(7, 2), key)}, audit.ErrFork, "their first 5"},
		{"another present", [][]byte{sign(t, bent(at(10, 2)), key)}, audit.ErrFork, "same 10 entries"},
		{"two pasts", [][]byte{sign(t, at(3, 2), key), sign(t, bent(at(3, 2)), key)}, audit.ErrFork, "same 3 entries"},
		{"a longer past", [][]byte{sign(t, audit.Checkpoint{Origin: at(1, 2).Origin, Size: 11}, key)}, audit.ErrFork, "11 entries"},
		{"a longer past, lost by a restore", [][]byte{sign(t, audit.Checkpoint{Origin: at(1, 1).Origin, Size: 12}, key)}, audit.ErrFork, "began epoch 2 lost some"},
		{"a later epoch", [][]byte{sign(t, at(3, 3), key)}, audit.ErrFork, "epoch 3"},
		{"another log", [][]byte{sign(t, elsewhere, foreign)}, audit.ErrCheckpoint, "other.test"},
		{"no checkpoint", [][]byte{[]byte("hello\n")}, audit.ErrCheckpoint, "older checkpoint 0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ev := audit.Evidence{
				Entries: strings.NewReader(join(lines(h.bodies))), Checkpoint: sign(t, at(10, 2), key),
				Older: c.older, Verifiers: known,
			}
			if c.name == "another log" {
				ev.Verifiers = verifiers(t, key, foreign)
			}
			report, err := ev.Verify()
			if !errors.Is(err, c.want) || err != nil && !strings.Contains(err.Error(), c.text) {
				t.Fatalf("Verify = %+v, %v; want %v about %q", report, err, c.want, c.text)
			}
			if err == nil && report.Older != len(c.older) {
				t.Errorf("%d older checkpoints verified, want %d", report.Older, len(c.older))
			}
		})
	}
}

// What a restore has lost is said, from the entry on that began its epoch, however long the log is by now; it excuses no
// change of what came before, and none within an epoch.
func TestVerifyAcrossEpochs(t *testing.T) {
	key := newKey(t, "acme.test", "n1")
	h := newHistory(t, 6)
	begun := sample()
	begun.Kind, begun.Details = "epoch.begin", []byte(`{"epoch":2}`)
	for _, e := range []audit.Entry{begun, sample(), sample(), sample()} {
		body, _, err := audit.AppendEntry(&h.store, h.size(), e)
		if err != nil {
			t.Fatal(err)
		}
		h.bodies = append(h.bodies, body)
	}
	lost := newHistory(t, 40) // as far as entry 5 the same
	at := func(of *history, size int64, epoch uint64) []byte {
		c := of.checkpoint(t, size)
		c.Origin = audit.Origin("acme.test", epoch)
		return sign(t, c, key)
	}
	bent := h.checkpoint(t, 4)
	bent.Root[3] ^= 1
	bent.Origin = audit.Origin("acme.test", 1)
	for name, c := range map[string]struct {
		older []byte
		text  string
	}{
		"from before":                  {at(lost, 5, 1), ""},
		"all that was saved":           {at(lost, 6, 1), ""},
		"of what was lost":             {at(lost, 9, 1), "the restore that began epoch 2 lost entries 6 to 8"},
		"longer than now":              {at(lost, 40, 1), "the restore that began epoch 2 lost entries 6 to 39"},
		"changed before":               {sign(t, bent, key), "their first 4 not the older one"},
		"another history of the epoch": {at(lost, 9, 2), "their first 9 not the older one"},
	} {
		ev := audit.Evidence{Entries: strings.NewReader(join(lines(h.bodies))), Checkpoint: at(h, 10, 2), Older: [][]byte{c.older}, Verifiers: verifiers(t, key)}
		report, err := ev.Verify()
		if c.text == "" && (err != nil || report.Older != 1) || c.text != "" && (!errors.Is(err, audit.ErrFork) || !strings.Contains(err.Error(), c.text)) {
			t.Errorf("%s: %+v, %v; want %q", name, report, err, c.text)
		}
	}
}

// Whatever is done to the bytes of an export, it no longer verifies; and the
// first wrong entry lies where the error says.
func TestVerifyAnyChange(t *testing.T) {
	key := newKey(t, "acme.test", "n1")
	known := verifiers(t, key)
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.IntRange(1, 12).Draw(t, "size")
		h := newHistory(t, size)
		head, err := h.checkpoint(t, int64(size)).Sign(note.Signer(key))
		if err != nil {
			t.Fatal(err)
		}
		export := []byte(join(lines(h.bodies)))
		bent := slices.Clone(export)
		at := rapid.IntRange(0, len(export)-2).Draw(t, "at")
		switch rapid.IntRange(0, 2).Draw(t, "how") {
		case 0:
			bent[at] ^= rapid.ByteRange(1, 255).Draw(t, "flip")
		case 1:
			bent = slices.Delete(bent, at, at+1)
		case 2:
			bent = slices.Insert(bent, at, rapid.Byte().Draw(t, "insert"))
		}
		wrong := int64(bytes.Count(export[:at], []byte("\n")))
		if bytes.Equal(bent, export) {
			return
		}
		_, err = audit.Verify(bytes.NewReader(bent), head, known)
		var tampered *audit.TamperError
		if !errors.As(err, &tampered) {
			t.Fatalf("byte %d (entry %d): %v, want a TamperError", at, wrong, err)
		}
		if tampered.From > wrong || wrong > tampered.To {
			t.Fatalf("entry %d is wrong, not one from %d to %d", wrong, tampered.From, tampered.To)
		}
	})
}
