package records

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// KindLog is the kind of a line that begins a tree.
const KindLog = "log"

// maxLine bounds a line; the longest record has a path of 8 KB, escaped.
const maxLine = 1 << 20

// ErrLine is returned when a line is longer than any record.
var ErrLine = errors.New("a line of over 1 MiB is no access record")

// First is the line that begins a tree.
type First struct {
	Time     time.Time `json:"time"`
	Kind     string    `json:"kind"`
	Log      string    `json:"log"`
	Previous *Head     `json:"previous,omitempty"` // what it goes on from, if its proxy knows
}

// Line writes it, without an end.
func (f First) Line() ([]byte, error) {
	f.Kind = KindLog
	f.Time = f.Time.UTC().Truncate(time.Millisecond)
	return json.Marshal(f)
}

// ParseFirst reads a line that may begin a tree.
func ParseFirst(line []byte) (First, bool) {
	var f First
	if !bytes.Contains(line[:min(len(line), 64)], []byte(`"kind":"`+KindLog+`"`)) { // most lines are records
		return f, false
	}
	if err := json.Unmarshal(line, &f); err != nil || f.Kind != KindLog || !validLog(f.Log) || f.Time.IsZero() {
		return First{}, false
	}
	return f, true
}

// validLog says whether a text can name a tree: 32 hex digits.
func validLog(s string) bool { return len(s) == 32 && strings.Trim(s, "0123456789abcdef") == "" }

// Line is one line of a file, and the tree that it is a leaf of.
type Line struct {
	Text  []byte // valid until the next
	First *First // where it begins a tree
	// Tree holds all lines up to this one, of the tree named Log; nil before the
	// first that begins one.
	Tree *Tree
	Log  string
}

// Scan gives each line of a file to visit. A file that was compressed is read as what it was.
func Scan(r io.Reader, visit func(Line) error) error {
	buffered := bufio.NewReader(r)
	if magic, err := buffered.Peek(2); err == nil && magic[0] == 0x1f && magic[1] == 0x8b {
		unzipped, err := gzip.NewReader(buffered)
		if err != nil {
			return err
		}
		buffered = bufio.NewReader(unzipped)
	}
	lines := bufio.NewScanner(buffered)
	lines.Buffer(nil, maxLine)
	lines.Split(byteLines)
	var tree *Tree
	var log string
	for lines.Scan() {
		l := Line{Text: lines.Bytes()}
		if first, ok := ParseFirst(l.Text); ok {
			l.First, tree, log = &first, &Tree{}, first.Log
		}
		if tree != nil {
			tree.Append(l.Text)
		}
		l.Tree, l.Log = tree, log
		if err := visit(l); err != nil {
			return err
		}
	}
	if errors.Is(lines.Err(), bufio.ErrTooLong) {
		return ErrLine
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read: %w", err)
	}
	return nil
}

// byteLines splits at "\n" and takes nothing else away, as bufio.ScanLines does
// with "\r": what is hashed is what stands there.
func byteLines(data []byte, atEOF bool) (int, []byte, error) {
	if i := bytes.IndexByte(data, '\n'); i >= 0 {
		return i + 1, data[:i], nil
	}
	if atEOF && len(data) > 0 {
		return len(data), data, nil
	}
	return 0, nil, nil
}
