package control

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hallpass/hallpass/audit"
)

// hook is a webhook that checks who sends, as one would by the specification.
type hook struct {
	*httptest.Server
	secret []byte

	mu     sync.Mutex
	broken bool             // guarded by mu
	heads  map[string]int64 // guarded by mu; by webhook-id
	wrong  []string         // guarded by mu
	asked  int              // guarded by mu
}

func newHook(t *testing.T) *hook {
	t.Helper()
	h := &hook{secret: []byte(strings.Repeat("s", 32)), heads: map[string]int64{}}
	h.Server = httptest.NewServer(h)
	t.Cleanup(h.Close)
	return h
}

func (h *hook) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.asked++
	if h.broken || err != nil {
		http.Error(w, "not now", http.StatusInternalServerError)
		return
	}
	id, at := r.Header.Get("webhook-id"), r.Header.Get("webhook-timestamp")
	mac := hmac.New(sha256.New, h.secret)
	mac.Write([]byte(id + "." + at + "." + string(body)))
	var e event
	if err := json.Unmarshal(body, &e); err != nil || r.Header.Get("webhook-signature") != "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)) {
		h.wrong = append(h.wrong, string(body))
		return
	}
	head, err := audit.ReadCheckpoint([]byte(e.Data.Checkpoint))
	if had, ok := h.heads[id]; err != nil || e.Type != "audit.checkpoint" || head.Size != e.Data.Size || ok && had != head.Size {
		h.wrong = append(h.wrong, string(body))
	}
	h.heads[id] = head.Size
}

func (h *hook) largest() (size int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.heads {
		size = max(size, s)
	}
	return size
}

func (h *hook) breaks(broken bool) (asked int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.broken = broken
	return h.asked
}

// witnessed is a cluster that publishes at a file and a webhook.
func witnessed(t *testing.T) (c *cluster, history string, h *hook) {
	t.Helper()
	h, history = newHook(t), filepath.Join(t.TempDir(), "heads")
	c = newCluster(t, func(cfg *Config) {
		cfg.Witness = Witness{Every: 50 * time.Millisecond, Files: []string{history}, Webhooks: []string{h.URL + "/T0KEN?key=T0KEN"}, Secret: h.secret}
	})
	return c, history, h
}

// latest is the size of the head beside a history; every time it is looked at, a
// majority must have cosigned it.
func (c *cluster) latest(history string) int64 {
	c.t.Helper()
	signed, err := os.ReadFile(history + ".latest")
	if errors.Is(err, os.ErrNotExist) {
		return 0
	}
	must(c.t, err)
	head, who := c.cosigners(signed)
	if len(who) < 2 {
		c.t.Errorf("published with the cosignatures of %v", who)
	}
	return head.Size
}

// TestWitnesses: what a majority cosigned is published, the newest first, by
// whoever leads; histories only grow, and a webhook that was away hears the newest.
func TestWitnesses(t *testing.T) {
	t.Parallel()
	c, history, h := witnessed(t)
	reach := func() {
		t.Helper()
		c.granted()
		cp, err := c.as("user/bob").AuditCheckpoint(t.Context())
		must(t, err)
		size := int64(cp.Size)
		c.until("both witnesses have it", func() bool { return c.latest(history) >= size && h.largest() >= size })
	}
	reach()
	asked := h.breaks(true)
	c.granted()
	c.until("the webhook is asked in vain", func() bool { return h.breaks(true) > asked })
	c.until("the leader says so", func() bool {
		f := finding(c.leader().Health(), "witnesses")
		return f.Status == statusWarn && strings.Contains(f.Detail, h.URL) && !strings.Contains(f.Detail, "T0KEN")
	})
	if strings.Contains(c.logs.String(), "T0KEN") {
		t.Error("what lets one in at the webhook is in the log")
	}
	h.breaks(false)
	reach()
	old := c.leader().ID()
	c.crash(old)
	reach()
	c.start(old)
	reach()
	c.until("the leader is content", func() bool { return finding(c.leader().Health(), "witnesses").Status == statusOK })

	text, err := os.ReadFile(history)
	must(t, err)
	parts := strings.Split(strings.TrimSuffix(string(text), "\n\n"), "\n\n")
	if len(parts) < 8 || len(parts)%2 != 0 {
		t.Fatalf("%d parts in the history", len(parts))
	}
	before := int64(-1)
	for i := 0; i < len(parts); i += 2 {
		head, err := audit.ParseCheckpoint([]byte(parts[i]+"\n\n"+parts[i+1]+"\n"), c.auditors())
		must(t, err)
		if head.Size <= before {
			t.Errorf("%d entries after %d", head.Size, before)
		}
		before = head.Size
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.wrong) > 0 {
		t.Errorf("the webhook was sent %q", h.wrong)
	}
	if info, err := os.Stat(history); err != nil || info.Mode().Perm()&0o044 != 0o044 {
		t.Errorf("mode %v, %v: an auditor cannot read it", info.Mode(), err)
	}
}

// TestWitnessHoldsAnotherHistory: a history that the log contradicts, or that is
// ahead of it, is not gone on with; one whose end a crash has torn is.
func TestWitnessHoldsAnotherHistory(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	c.granted()
	r := c.leader()
	head, err := r.n.ownHead(t.Context(), -1)
	must(t, err)
	signed, err := head.Sign(r.n.node.AuditSigner)
	must(t, err)
	older, err := r.n.ownHead(t.Context(), head.Size-1)
	must(t, err)
	entry := func(c audit.Checkpoint) string {
		s, err := c.Sign(r.n.node.AuditSigner)
		must(t, err)
		return string(s) + "\n"
	}
	rewritten, ahead, next := older, head, head
	rewritten.Root[0] ^= 1
	ahead.Size++
	next.Origin = audit.Origin("acme.test", 2)
	for name, x := range map[string]struct {
		holds string
		want  error // nil: it is added
		adds  bool
	}{
		"nothing":                    {"", nil, true},
		"an older one":               {entry(older), nil, true},
		"the same":                   {entry(head), nil, false},
		"one torn in its text":       {entry(older) + entry(head)[:20], nil, true},
		"one torn in its signatures": {entry(older) + entry(head)[:len(entry(head))-8], nil, true},
		"nothing but one torn":       {entry(head)[:20], nil, true},
		"another root":               {entry(rewritten), errWitness, false},
		"more entries":               {entry(ahead), errWitness, false},
		"a later epoch":              {entry(next), errWitness, false},
		"something else altogether":  {"a\n\nb\n\nc\n\n", errors.New("holds no head"), false},
		"somebody else's file":       {"root:x:0:0:root:/root:/bin/bash\n", errors.New("holds no head"), false},
		"of another log, torn":       {"globex.test/hallpass/epoch/1\n", errors.New("holds no head"), false},
	} {
		path := filepath.Join(t.TempDir(), "heads")
		must(t, os.WriteFile(path, []byte(x.holds), 0o600))
		err := r.n.toFile(t.Context(), path, head, signed)
		if (err == nil) != (x.want == nil) || x.want != nil && !errors.Is(err, x.want) && !strings.Contains(err.Error(), x.want.Error()) {
			t.Errorf("%s: %v, want %v", name, err, x.want)
		}
		text, rerr := os.ReadFile(path)
		must(t, rerr)
		if added := string(text) != x.holds; added != x.adds || !strings.HasPrefix(string(text), x.holds) {
			t.Errorf("%s: it holds %q after %q", name, text, x.holds)
		}
		_, lerr := os.Stat(path + ".latest")
		if (lerr == nil) != (err == nil) {
			t.Errorf("%s: latest: %v", name, lerr)
		}
		if err == nil { // again: it is there
			must(t, r.n.toFile(t.Context(), path, head, signed))
			if again, err := os.ReadFile(path); err != nil || string(again) != string(text) {
				t.Errorf("%s: added twice", name)
			}
		}
	}
}

func TestWebhookSecret(t *testing.T) {
	t.Parallel()
	good := "whsec_" + base64.StdEncoding.EncodeToString([]byte(strings.Repeat("k", 24)))
	for name, x := range map[string]struct {
		text string
		mode os.FileMode
		ok   bool
	}{
		"good":              {good + "\n", 0o600, true},
		"read by the group": {good, 0o640, false},
		"no prefix":         {strings.TrimPrefix(good, "whsec_"), 0o600, false},
		"too short":         {"whsec_" + base64.StdEncoding.EncodeToString([]byte("short")), 0o600, false},
		"no base64":         {"whsec_!" + good, 0o600, false},
		"empty":             {"", 0o600, false},
	} {
		path := filepath.Join(t.TempDir(), "secret")
		must(t, os.WriteFile(path, []byte(x.text), x.mode))
		secret, err := LoadWebhookSecret(path)
		if (err == nil) != x.ok || err != nil && strings.Contains(err.Error(), "kkkk") || x.ok && len(secret) != 24 {
			t.Errorf("%s: %d bytes, %v", name, len(secret), err)
		}
	}
}
