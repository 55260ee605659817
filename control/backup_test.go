package control

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/raftstore"
)

// save writes a snapshot to a file.
func (c *cluster) save(who *api.Client, bodies bool) (string, SnapshotInfo) {
	c.t.Helper()
	var b bytes.Buffer
	n, err := who.Snapshot(c.t.Context(), bodies, &b)
	must(c.t, err)
	if n != int64(b.Len()) {
		c.t.Errorf("%d bytes, told %d", b.Len(), n)
	}
	path := filepath.Join(c.t.TempDir(), "cluster.snapshot")
	must(c.t, os.WriteFile(path, b.Bytes(), 0o600))
	info, err := InspectSnapshot(path)
	must(c.t, err)
	return path, info
}

// A snapshot that is taken while others write, through whatever node, holds all that was acknowledged before, and holds
// nobody up.
func TestSnapshotUnderLoad(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	c.granted()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var group sync.WaitGroup
	var writes atomic.Int64
	for i := range 2 {
		writer := c.client(c.identity(t, "spiffe://acme.test/user/"+[]string{"alice", "erin"}[i]), c.urls()...)
		group.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				in := readAccounts()
				in.Reason = fmt.Sprintf("writer %d, write %d", i, n)
				r, err := writer.CreateRequest(context.WithoutCancel(ctx), in)
				if err == nil {
					_, err = writer.CancelRequest(context.WithoutCancel(ctx), r.ID)
				}
				if err != nil {
					t.Errorf("writer %d: %v", i, err)
					return
				}
				writes.Add(2)
			}
		})
	}
	for _, at := range c.live() {
		seen := writes.Load()
		c.until("writes go on", func() bool { return writes.Load() > seen+20 || t.Failed() })
		before, err := c.as("user/ann").AuditCheckpoint(t.Context())
		must(t, err)
		_, info := c.save(c.at(at, "user/ann"), true)
		if info.AuditSize < before.Size || !info.AuditBodies || info.Epoch != 1 || info.TrustDomain != "acme.test" ||
			info.Cluster != c.manifest.Cluster || len(info.Members) != 3 || info.Newest.IsZero() {
			t.Errorf("by %s, after %d entries: %+v", at.ID(), before.Size, info)
		}
		if info.AuditSize == before.Size && info.AuditRoot != before.Root {
			t.Errorf("the audit root is %s, and a node signed %s", info.AuditRoot, before.Root)
		}
	}
	stop()
	group.Wait()
	if _, info := c.save(c.as("user/ann"), false); info.AuditBodies {
		t.Errorf("without the entries of the audit log: %+v", info)
	}
	c.check()
}

// A snapshot is everything that is known about access: nobody but admins takes one, and each is in the log.
func TestWhoTakesSnapshots(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	for _, who := range []string{"user/alice", "user/bob", "service/payments", "node/n1", "user/nobody"} {
		for _, at := range []*running{c.leading(), c.follower()} {
			var b bytes.Buffer
			_, err := c.at(at, who).Snapshot(t.Context(), true, &b)
			wantProblem(t, err, api.CodeDenied)
			if b.Len() > 0 {
				t.Errorf("%s was sent %d bytes", who, b.Len())
			}
		}
	}
	if strings.Contains(c.logs.String(), "a snapshot was taken") {
		t.Error("the log says that somebody took one")
	}
	c.save(c.as("user/ann"), true)
	if log := c.logs.String(); !strings.Contains(log, "a snapshot was taken") || !strings.Contains(log, "spiffe://acme.test/user/ann") {
		t.Error("the log does not say who took one")
	}
}

// One snapshot at a time: each takes the state's size on the leader's disk.
func TestOneSnapshotAtATime(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	for _, r := range c.live() {
		r.n.saving.Store(true)
	}
	_, err := c.once(c.leading(), "user/ann").Snapshot(t.Context(), true, new(bytes.Buffer))
	wantProblem(t, err, api.CodeUnavailable)
	for _, r := range c.live() {
		r.n.saving.Store(false)
	}
	c.save(c.as("user/ann"), true)
	for _, r := range c.live() {
		if r.n.saving.Load() {
			t.Errorf("%s takes one for ever", r.ID())
		}
	}
}

// A query that the route does not know is refused, not taken for the default.
func TestSnapshotQuery(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	for _, query := range []string{"audit_bodies=perhaps", "bodies=false", "stale=true", "audit_bodies=true&audit_bodies=false", "audit_bodies=false&x=%zz", "audit_bodies="} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, c.leading().url()+"/v1/cluster/snapshot?"+query, nil)
		must(t, err)
		req.Header.Set("Accept", "application/octet-stream")
		resp, err := c.raw("user/ann").Do(req)
		must(t, err)
		must(t, resp.Body.Close())
		if resp.StatusCode != http.StatusBadRequest && resp.StatusCode != http.StatusUnprocessableEntity {
			t.Errorf("%s: %s", query, resp.Status)
		}
	}
}

// TestStolenSnapshot: whoever takes a backup away has read everything, and holds no key: none of a node's, none of the
// roots'.
func TestStolenSnapshot(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	r := c.granted()
	csr, _ := newCSR(t)
	_, err := c.as("user/alice").GrantCertificate(t.Context(), r.Grant.ID, csr)
	must(t, err)
	path, _ := c.save(c.as("user/ann"), true)
	var all bytes.Buffer // keys, values and entries, as they are once unpacked
	file, err := os.Open(path)
	must(t, err)
	defer func() { must(t, file.Close()) }()
	check := snapshotCheck()
	check.Keep = func([]byte) bool { return true }
	about := check.About
	check.About = func(r raftstore.Reader, text []byte) error {
		r.Scan(nil, nil, func(k, v []byte) bool { all.Write(k); all.Write(v); return true })
		return about(r, text)
	}
	check.CheckRecords = func(_ raftstore.Reader, _ uint64, records [][]byte) error {
		for _, body := range records {
			all.Write(body)
		}
		return nil
	}
	_, err = raftstore.CheckBackup(file, check)
	must(t, err)
	if !bytes.Contains(all.Bytes(), []byte("ticket 7")) {
		t.Fatal("the snapshot is not what was looked through")
	}
	keys := 0
	must(t, filepath.WalkDir(c.dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".key" && filepath.Base(path) != "key.pem" {
			return err
		}
		text, err := os.ReadFile(path)
		must(t, err)
		keys++
		for _, secret := range secrets(text) {
			for form, b := range map[string][]byte{"raw": secret, "base64": []byte(base64.StdEncoding.EncodeToString(secret))} {
				if bytes.Contains(all.Bytes(), b) {
					t.Errorf("%s is in the snapshot, %s", path, form)
				}
			}
		}
		return nil
	}))
	if keys < 3*4+2 {
		t.Errorf("looked for %d keys only", keys)
	}
	if bytes.Contains(all.Bytes(), []byte("PRIVATE KEY")) {
		t.Error("the snapshot has a PEM key")
	}
}

// secrets are what a key file must not be found by.
func secrets(text []byte) [][]byte {
	block, _ := pem.Decode(text)
	if block == nil {
		return [][]byte{bytes.TrimSpace(text)}
	}
	all := [][]byte{block.Bytes}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return all
	}
	switch k := key.(type) {
	case *ecdsa.PrivateKey:
		if d, err := k.Bytes(); err == nil {
			all = append(all, d)
		}
	case ed25519.PrivateKey:
		all = append(all, k.Seed())
	}
	return all
}

// A damaged snapshot is refused with a sentence that says where.
func TestInspectDamage(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	c.granted()
	path, _ := c.save(c.as("user/ann"), true)
	whole, err := os.ReadFile(path)
	must(t, err)
	for at := 0; at < len(whole); at += len(whole)/97 + 1 {
		b := bytes.Clone(whole)
		b[at] ^= 0x10
		must(t, os.WriteFile(path, b, 0o600))
		if _, err := InspectSnapshot(path); !errors.Is(err, raftstore.ErrDamagedBackup) || !strings.Contains(err.Error(), "byte ") {
			t.Errorf("byte %d changed: %v", at, err)
		}
		must(t, os.WriteFile(path, whole[:at], 0o600))
		if _, err := InspectSnapshot(path); !errors.Is(err, raftstore.ErrDamagedBackup) || !strings.Contains(err.Error(), "cut short") {
			t.Errorf("cut at byte %d: %v", at, err)
		}
	}
}
