package raftstore

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"os"
	"testing"
	"unicode/utf8"

	"github.com/hallpass/hallpass/internal/near"
)

// FuzzPreface: what a peer says first is read whole, byte for byte, and only one that says the
// same as this node, but for what the stream carries and a history that one of them has not got,
// is let in.
func FuzzPreface(f *testing.F) {
	here := preface{kind: streamRaft, cluster: clusterHash("acme"), lineage: lineage{1}, timing: Timing{}.withDefaults()}
	fresh := here
	fresh.lineage = lineage{}
	kinds := []streamKind{streamRaft, streamApp, streamRecords, streamHello}
	for _, kind := range kinds {
		same := here
		same.kind = kind
		f.Add(same.encode(), uint16(0), byte(0))
	}
	f.Add(fresh.encode(), uint16(1+sha256.Size), byte(2))
	f.Fuzz(func(t *testing.T, data []byte, at uint16, b byte) {
		for _, data := range near.Of(data, at, b) {
			if len(data) != prefaceSize {
				continue // nobody reads more, and fewer are waited for
			}
			theirs := decodePreface(data)
			if again := theirs.encode(); !bytes.Equal(again, data) {
				t.Fatalf("%x was read as %x", data, again)
			}
			if here.refuses(theirs) != nil {
				continue
			}
			let := false
			for _, line := range []lineage{here.lineage, {}} {
				for _, kind := range kinds {
					may := here
					may.kind, may.lineage = kind, line
					let = let || bytes.Equal(may.encode(), data)
				}
			}
			if !let {
				t.Fatalf("%x was let in", data)
			}
		}
	})
}

// FuzzReply: of an answer as much is read as it says, within its bound, and that is what a node
// that answers so would have sent; its words are fit for a log.
func FuzzReply(f *testing.F) {
	for _, a := range []reply{
		{kind: streamRaft, standing: standingMember, lineage: lineage{1}, founding: sha256.Sum256([]byte("first"))},
		{kind: refusedKind, reason: "it is of another cluster"},
	} {
		f.Add(a.encode(), uint16(replySize-1), byte(1))
	}
	f.Fuzz(func(t *testing.T, data []byte, at uint16, b byte) {
		for _, data := range near.Of(data, at, b) {
			in := bytes.NewReader(data)
			a, err := readReply(in)
			if err != nil {
				continue
			}
			if !utf8.ValidString(a.reason) || len(a.reason) > maxReason {
				t.Fatalf("%x says %q", data, a.reason)
			}
			read := data[:len(data)-in.Len()]
			if utf8.Valid(read[replySize:]) && !bytes.Equal(a.encode(), read) {
				t.Fatalf("%x was read as %x", read, a.encode())
			}
		}
	})
}

// FuzzBackup: a frame of a backup is another, and every checksum over it is right, as whoever forges
// one would have them. Nothing of the state and of the records can be, of the head what the state does
// not know; and no length that a frame gives makes the reader take more memory than the file has.
func FuzzBackup(f *testing.F) {
	file, err := os.ReadFile(keptBackup)
	if err != nil {
		f.Fatal(err)
	}
	frames := 0
	_ = reframe(f, file, func(kind byte, payload []byte) []byte {
		f.Add(uint8(frames), uint16(len(payload)/2), byte('0'))
		frames++
		return payload
	})
	f.Fuzz(func(t *testing.T, which uint8, at uint16, b byte) {
		for i := range 7 {
			n, changed := 0, false
			var of byte
			out := reframe(t, file, func(kind byte, payload []byte) []byte {
				if n++; n-1 != int(which)%frames {
					return payload
				}
				of = kind
				all := near.Of(bytes.Clone(payload), at, b)
				if other := all[i%len(all)]; !bytes.Equal(other, payload) && kind != frameEnd {
					changed = true
					return other
				}
				return payload
			})
			_, err := CheckBackup(bytes.NewReader(out), kvCheck())
			switch {
			case err == nil && changed && of != frameHead:
				t.Fatalf("frame %d, which is of kind %q, is another, and nobody noticed", int(which)%frames, of)
			case err != nil && !changed:
				t.Fatal(err)
			case err != nil && !errors.Is(err, ErrDamagedBackup):
				t.Fatal(err)
			}
		}
		// The same of a file whose checksums are as they come.
		for _, out := range near.Of(file, at, b) {
			if _, err := CheckBackup(bytes.NewReader(out), kvCheck()); !bytes.Equal(out, file) && !errors.Is(err, ErrDamagedBackup) {
				t.Fatalf("a byte at %d: %v", int(at)%(len(file)+1), err)
			}
		}
	})
}
