package records

import (
	"bytes"
	"compress/gzip"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// TestTree: the root at every size is what an independent implementation of RFC 6962 says.
func TestTree(t *testing.T) {
	var tree Tree
	if got, want := tree.Root(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"; got != want {
		t.Errorf("empty: %s", got)
	}
	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(at []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(at))
		for i, n := range at {
			out[i] = stored[n]
		}
		return out, nil
	})
	for i := range int64(200) {
		line := fmt.Appendf(nil, "line %d", i)
		more, err := tlog.StoredHashes(i, line, reader)
		if err != nil {
			t.Fatal(err)
		}
		stored = append(stored, more...)
		want, err := tlog.TreeHash(i+1, reader)
		if err != nil {
			t.Fatal(err)
		}
		tree.Append(line)
		if tree.Size() != i+1 || tree.Root() != hex.EncodeToString(want[:]) {
			t.Fatalf("size %d: %d, %s, want %s", i+1, tree.Size(), tree.Root(), want)
		}
	}
}

const one, two = "0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210"

func first(t *testing.T, f First) string {
	t.Helper()
	f.Time = time.Unix(1, 5e6)
	line, err := f.Line()
	if err != nil {
		t.Fatal(err)
	}
	return string(line)
}

// TestScan: each line with the tree it belongs to, from the plain file and the compressed one.
func TestScan(t *testing.T) {
	a, b := first(t, First{Log: one}), first(t, First{Log: two, Previous: &Head{Log: one, Size: 3, Root: "aa"}})
	text := "old\n" + a + "\n{}\r\n{\"torn\n" + b + "\nlast"
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	if _, err := w.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{text, packed.String()} {
		var got []string
		var roots Tree
		err := Scan(strings.NewReader(file), func(l Line) error {
			size := int64(0)
			if l.Tree != nil {
				size = l.Tree.Size()
			}
			got = append(got, fmt.Sprintf("%.4s %d %q", l.Log, size, l.Text))
			if l.Log == one {
				roots.Append(bytes.Clone(l.Text))
				if roots.Root() != l.Tree.Root() {
					t.Errorf("root after %q", l.Text)
				}
			}
			if l.First != nil && l.Log == two && (l.First.Previous == nil || l.First.Previous.Size != 3) {
				t.Errorf("previous %+v", l.First.Previous)
			}
			return nil
		})
		want := []string{
			fmt.Sprintf(" 0 %q", "old"), fmt.Sprintf("0123 1 %q", a), fmt.Sprintf("0123 2 %q", "{}\r"), fmt.Sprintf("0123 3 %q", `{"torn`),
			fmt.Sprintf("fedc 1 %q", b), fmt.Sprintf("fedc 2 %q", "last"),
		}
		if err != nil || strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("%v:\n%s\nwant\n%s", err, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
	if err := Scan(strings.NewReader(strings.Repeat("x", maxLine+1)), func(Line) error { return nil }); !errors.Is(err, ErrLine) {
		t.Errorf("%v", err)
	}
	if err := Scan(bytes.NewReader(packed.Bytes()[:packed.Len()-9]), func(Line) error { return nil }); err == nil {
		t.Error("half a compressed file was read as a whole one")
	}
}

// TestParseFirst: nothing but a whole first line begins a tree.
func TestParseFirst(t *testing.T) {
	if f, ok := ParseFirst([]byte(first(t, First{Log: one}))); !ok || f.Log != one || !f.Time.Equal(time.Unix(1, 5e6)) {
		t.Errorf("%+v, %v", f, ok)
	}
	for _, text := range []string{
		"", "{}", `{"time":"2026-01-01T00:00:00Z","kind":"log"}`, `{"time":"2026-01-01T00:00:00Z","kind":"log","log":"ABC"}`,
		`{"kind":"log","log":"` + one + `"}`, `{"time":"2026-01-01T00:00:00Z","kind":"log","log":"` + one + `"`,
		`{"time":"2026-01-01T00:00:00Z","kind":"request","path":"\"kind\":\"log\"","log":"` + one + `"}`,
	} {
		if f, ok := ParseFirst([]byte(text)); ok {
			t.Errorf("%s: %+v", text, f)
		}
	}
}

// FuzzScan: the lines that are visited are the file, byte for byte, and each tree is of what stands there from the line that
// begins it; and the same bytes, compressed, are the same lines.
func FuzzScan(f *testing.F) {
	line, err := First{Time: time.Unix(1, 5e6), Log: one}.Line()
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte("{}\n" + string(line) + "\n{\"a\":1}\n"))
	f.Add(append(line, "\nx"...))
	f.Add([]byte("\n\n"))
	packer := gzip.NewWriter(nil)
	f.Fuzz(func(t *testing.T, data []byte) {
		var lines [][]byte
		var trees []Head
		err := Scan(bytes.NewReader(data), func(l Line) error {
			lines = append(lines, bytes.Clone(l.Text))
			if (l.Tree == nil) != (l.Log == "") || l.First != nil && (l.Tree.Size() != 1 || l.First.Log != l.Log) {
				t.Errorf("%q begins %+v, and is of %q", l.Text, l.First, l.Log)
			}
			if l.Tree != nil {
				trees = append(trees, l.Tree.Head(l.Log))
			}
			return nil
		})
		if err != nil {
			return // it begins as if it were compressed, or has a line that is too long
		}
		if len(data) > 1 && data[0] == 0x1f && data[1] == 0x8b {
			return
		}
		whole := append(bytes.Join(lines, []byte("\n")), '\n')
		if len(data) == 0 {
			whole = nil
		}
		if !bytes.Equal(bytes.TrimSuffix(whole, []byte("\n")), bytes.TrimSuffix(data, []byte("\n"))) {
			t.Fatalf("the lines of %q are %q", data, lines)
		}
		if len(trees) > 0 {
			last := trees[len(trees)-1]
			var tree Tree
			for _, text := range lines[int64(len(lines))-last.Size:] {
				tree.Append(text)
			}
			if tree.Root() != last.Root {
				t.Errorf("%q ends with %+v, which is not what stands there", data, last)
			}
		}
		var packed bytes.Buffer
		packer.Reset(&packed)
		if _, err := packer.Write(data); err != nil {
			t.Fatal(err)
		}
		if err := packer.Close(); err != nil {
			t.Fatal(err)
		}
		i := 0
		if err := Scan(&packed, func(l Line) error {
			if i >= len(lines) || !bytes.Equal(l.Text, lines[i]) {
				t.Errorf("compressed, line %d of %q is %q", i, data, l.Text)
			}
			i++
			return nil
		}); err != nil || i != len(lines) {
			t.Errorf("compressed, %q has %d lines, %v", data, i, err)
		}
	})
}
