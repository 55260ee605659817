package raftstore

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// kvAbout says of a kv state how many records it has.
func kvAbout(r Reader) ([]byte, error) {
	return fmt.Appendf(nil, `{"notes":%q}`, r.Get([]byte(kvCount))), nil
}

func kvCheck() BackupCheck {
	return BackupCheck{
		Keep: func(key []byte) bool { return key[0] == kvCount[0] },
		About: func(r Reader, about []byte) error {
			if want, _ := kvAbout(r); !bytes.Equal(want, about) {
				return fmt.Errorf("it says %s, and the state is %s", about, want)
			}
			return nil
		},
		CheckRecords: kv{}.CheckRecords,
	}
}

// backup takes one of whoever leads.
func (c *cluster) backup(records bool) (BackupHead, []byte) {
	c.t.Helper()
	var file bytes.Buffer
	var head BackupHead
	c.must("back up", func(ctx context.Context, s *Store) (err error) {
		file.Reset()
		head, err = s.Backup(ctx, &file, BackupOptions{WithRecords: records, About: kvAbout})
		return err
	})
	return head, file.Bytes()
}

func TestBackup(t *testing.T) {
	c := newCluster(t, nil)
	c.propose("set a 1")
	index := c.note(0, 600)
	count := get(t, c.leader(), kvCount) // a repeated command may have made it more
	head, file := c.backup(true)
	got, err := CheckBackup(bytes.NewReader(file), kvCheck())
	if err != nil {
		t.Fatal(err)
	}
	if got.Index < index || got.Index != head.Index || got.StateHash != head.StateHash || fmt.Sprint(got.Records) != count || !got.WithRecords ||
		len(got.Members) != 3 || got.Members[0].Role != RoleVoter || got.Members[0].Address == "" || string(got.About) != fmt.Sprintf(`{"notes":%q}`, count) {
		t.Errorf("head: %+v, about %s", got, got.About)
	}
	_, without := c.backup(false)
	if got, err := CheckBackup(bytes.NewReader(without), kvCheck()); err != nil || got.WithRecords || got.Records != head.Records {
		t.Errorf("without records: %+v, %v", got, err)
	}
	for _, s := range c.followers() {
		var b bytes.Buffer
		if _, err := s.Backup(t.Context(), &b, BackupOptions{About: kvAbout}); !errors.Is(err, ErrNotLeader) && !errors.Is(err, ErrNoQuorum) {
			t.Errorf("of a follower: %v", err)
		}
	}
	for id, dir := range c.dirs {
		if left, _ := filepath.Glob(filepath.Join(dir, "backup-*")); left != nil {
			t.Errorf("%s left %v behind", id, left)
		}
	}
}

// Whatever byte of a backup changes, wherever it ends, and whatever follows it: it is refused, and the error says where.
func TestDamagedBackup(t *testing.T) {
	c := newCluster(t, nil)
	for i := range 20 {
		c.propose("set key%d %d", i, i)
	}
	c.note(0, 300)
	_, file := c.backup(true)
	refused := func(what string, b []byte) {
		t.Helper()
		_, err := CheckBackup(bytes.NewReader(b), kvCheck())
		switch {
		case err == nil:
			t.Fatalf("%s is taken for whole", what)
		case !errors.Is(err, ErrDamagedBackup):
			t.Fatalf("%s: %v", what, err)
		case !strings.Contains(err.Error(), "byte "):
			t.Fatalf("%s: %v: it does not say where", what, err)
		}
	}
	for i := range file {
		for _, bit := range []byte{1, 0x80} {
			b := bytes.Clone(file)
			b[i] ^= bit
			refused(fmt.Sprintf("byte %d of %d, bit %#x", i, len(file), bit), b)
		}
		refused(fmt.Sprintf("the first %d bytes of %d", i, len(file)), file[:i])
	}
	refused("a byte more", append(bytes.Clone(file), 0))
	refused("two in one file", append(bytes.Clone(file), file...))
}

// A backup whose checksums were made anew after its records were exchanged is not what the state knows.
func TestForgedRecordsInABackup(t *testing.T) {
	c := newCluster(t, nil)
	c.note(0, 3)
	_, file := c.backup(true)
	forged := reframe(t, file, func(kind byte, payload []byte) []byte {
		if kind == frameRecords {
			return bytes.Replace(payload, []byte("note 1"), []byte("note x"), 1)
		}
		return payload
	})
	_, err := CheckBackup(bytes.NewReader(forged), kvCheck())
	if !errors.Is(err, ErrDamagedBackup) || !strings.Contains(err.Error(), "records 0 to ") {
		t.Errorf("an exchanged record: %v", err)
	}
	lies := reframe(t, file, func(kind byte, payload []byte) []byte {
		if kind == frameHead {
			return bytes.Replace(payload, []byte(`"notes":"`), []byte(`"notes":"1`), 1)
		}
		return payload
	})
	if _, err := CheckBackup(bytes.NewReader(lies), kvCheck()); !errors.Is(err, ErrDamagedBackup) || !strings.Contains(err.Error(), "it says") {
		t.Errorf("a head that describes another state: %v", err)
	}
}

// A backup whose state was exchanged, by one who made all checksums anew, is as good as a genuine one to whoever reads it,
// and its records are: nothing in a file says whose it is.
func TestForgedStateInABackup(t *testing.T) {
	c := newCluster(t, nil)
	c.propose("set policy strict")
	c.note(0, 20)
	head, file := c.backup(true)
	was := head.StateHash

	path := filepath.Join(t.TempDir(), stateFile)
	var state bytes.Buffer
	_ = reframe(t, file, func(kind byte, payload []byte) []byte {
		if kind == frameState {
			state.Write(payload)
		}
		return payload
	})
	if _, err := writeStateFile(path, &state); err != nil {
		t.Fatal(err)
	}
	st, err := openState(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := st.write(position{head.Index, head.Term}, func(tx *boltTx) { tx.Put([]byte("policy"), []byte("anybody")) }); err != nil {
		t.Fatal(err)
	}
	recs, err := openRecords(filepath.Join(t.TempDir(), recordsDir), testLogger(t, "forger"))
	if err != nil {
		t.Fatal(err)
	}
	snap, err := fixState(st, recs, func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	var forged bytes.Buffer
	if err := snap.writeTo(&forged); err != nil {
		t.Fatal(err)
	}
	hash := snap.state.content.hash()
	snap.Release()
	if _, err := st.close(false); err != nil {
		t.Fatal(err)
	}
	out := reframe(t, file, func(kind byte, payload []byte) []byte {
		switch kind {
		case frameHead:
			return bytes.Replace(payload, []byte(was), []byte(hex.EncodeToString(hash[:])), 1)
		case frameState: // one piece, as small as it is
			return forged.Bytes()
		}
		return payload
	})
	if got, err := CheckBackup(bytes.NewReader(out), kvCheck()); err != nil || got.StateHash == was {
		t.Errorf("a forged state: %+v, %v", got, err)
	}
}

// keptBackup is one that was written when its format was made: 20 keys, 300 records.
const keptBackup = "testdata/backup-format-1"

var update = flag.Bool("update", false, "write testdata/backup-format-1 anew, for a format that nobody has written yet")

// TestKeptBackup: what an earlier release has written can be read, and restored from.
func TestKeptBackup(t *testing.T) {
	c := newCluster(t, nil)
	if *update {
		for i := range 20 {
			c.propose("set key%d %d", i, i)
		}
		c.note(0, 300)
		_, file := c.backup(true)
		if err := os.WriteFile(keptBackup, file, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	file, err := os.ReadFile(keptBackup)
	if err != nil {
		t.Fatal(err)
	}
	head, err := CheckBackup(bytes.NewReader(file), kvCheck())
	if err != nil || head.Records < 300 || !head.WithRecords || len(head.Members) != 3 {
		t.Fatalf("%+v, %v", head, err)
	}
	c.wipe("n1")
	if _, err := Restore(c.restoreConfig("n1", LogBolt), bytes.NewReader(file)); err != nil {
		t.Fatal(err)
	}
}

// A backup of a later format is refused by its number, and not taken for what this one would mean.
func TestBackupOfALaterFormat(t *testing.T) {
	c := newCluster(t, nil)
	c.propose("set a 1")
	_, file := c.backup(true)
	later := reframe(t, file, func(kind byte, payload []byte) []byte {
		return bytes.Replace(payload, []byte(`"format":1`), []byte(`"format":2`), 1)
	})
	c.wipe("n1")
	_, err := Restore(c.restoreConfig("n1", LogBolt), bytes.NewReader(later))
	if !errors.Is(err, ErrDamagedBackup) || !strings.Contains(err.Error(), "of format 2, and this program reads 1") {
		t.Errorf("format 2: %v", err)
	}
}

// reframe writes a backup again with what change makes of each frame.
func reframe(t testing.TB, file []byte, change func(kind byte, payload []byte) []byte) []byte {
	t.Helper()
	in := newBackupReader(bytes.NewReader(file))
	if err := in.read(make([]byte, len(backupMagic))); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	b := newBackupWriter(&out)
	if err := b.write([]byte(backupMagic)); err != nil {
		t.Fatal(err)
	}
	for in.kind != frameEnd {
		if err := in.next(); err != nil {
			t.Fatal(err)
		}
		payload := change(in.kind, in.payload)
		if in.kind == frameEnd {
			payload = b.sum.Sum(nil)
		}
		if err := b.frame(in.kind, payload); err != nil {
			t.Fatal(err)
		}
	}
	return out.Bytes()
}

// A backup that nobody reads yet holds back nobody, and is of the moment when it began.
func TestBackupWhileOthersWrite(t *testing.T) {
	c := newCluster(t, nil)
	c.note(0, 10)
	var file bytes.Buffer
	var head BackupHead
	c.must("back up", func(ctx context.Context, s *Store) (err error) {
		file.Reset()
		head, err = s.Backup(ctx, &file, BackupOptions{WithRecords: true, About: kvAbout, Ready: func(BackupHead) error { //nolint:contextcheck // others write, for as long as they like
			c.note(10, 20)
			c.propose("set big %s", strings.Repeat("x", 1<<19))
			return nil
		}})
		return err
	})
	got, err := CheckBackup(&file, kvCheck())
	if err != nil {
		t.Fatal(err)
	}
	if after := get(t, c.leader(), kvCount); got.Index != head.Index || fmt.Sprint(got.Records) == after {
		t.Errorf("it has %d records, as many as there were after it began", got.Records)
	}
}
