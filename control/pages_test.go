package control

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/approval/api"
)

// TestLongAnswers: a list of long things comes in pages that fit, whole, through
// followers too.
func TestLongAnswers(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	ann, want := c.as("user/ann"), map[string]bool{}
	long := testPolicy + "# " + strings.Repeat("x", 45<<10) + "\n"
	for range 100 {
		ch, err := ann.ProposeChange(t.Context(), api.ChangeInput{Change: api.ChangeSpec{Kind: api.ChangePolicySet, YAML: long}, BaseRevision: 1})
		must(t, err)
		_, err = ann.CancelChange(t.Context(), ch.ID)
		must(t, err)
		want[ch.ID] = true
	}
	cl, got, cursor, pages := c.raw("user/bob"), map[string]bool{}, "", 0
	for {
		resp, err := cl.Get(c.follower().url() + "/v1/changes?limit=1000" + cursor)
		must(t, err)
		text, err := io.ReadAll(resp.Body)
		must(t, errors.Join(err, resp.Body.Close()))
		var page api.ChangeList
		if err := json.Unmarshal(text, &page); err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s, %d bytes: %v", resp.Status, len(text), err)
		}
		if len(text) > maxPageBytes+(1<<20) {
			t.Errorf("a page of %d bytes", len(text))
		}
		for _, ch := range page.Changes {
			if got[ch.ID] || !want[ch.ID] || ch.Change.YAML != long {
				t.Errorf("%s is there twice, or not whole", ch.ID)
			}
			got[ch.ID] = true
		}
		if pages++; page.Next == "" {
			break
		}
		cursor = "&cursor=" + page.Next
	}
	if len(got) != len(want) || pages < 2 {
		t.Errorf("%d of %d on %d pages", len(got), len(want), pages)
	}
}

// TestListsAreBounded: whoever sees nothing makes the node look through a bounded
// part of what there is.
func TestListsAreBounded(t *testing.T) {
	t.Parallel()
	looks := 0
	next := func(f approval.Filter) ([]int, string, error) { // nothing matches, and there is always more
		looks++
		return nil, "more", nil
	}
	out, cursor, err := visiblePage(approval.Filter{}, next, func(int) bool { return true }, func(int) weight { return weight{} })
	if err != nil || len(out) != 0 || cursor != "more" || looks > maxScans {
		t.Errorf("%d looks; %v %q %v", looks, out, cursor, err)
	}
}

// TestRelay: of an answer that the leader breaks off, the caller gets nothing, or
// a break.
func TestRelay(t *testing.T) {
	t.Parallel()
	answer := func(size int) *http.Response {
		leader := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, strings.Repeat("x", size))
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}))
		t.Cleanup(leader.Close)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		t.Cleanup(cancel)
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, leader.URL, nil)
		must(t, err)
		resp, err := http.DefaultClient.Do(req)
		must(t, err)
		t.Cleanup(func() { _ = resp.Body.Close() })
		return resp
	}
	w := httptest.NewRecorder()
	if err := relay(w, w, answer(1000)); err == nil || w.Body.Len() > 0 { //nolint:bodyclose // the cleanup does
		t.Errorf("%v, and %d bytes were passed on", err, w.Body.Len())
	}
	broken := func() (v any) {
		defer func() { v = recover() }()
		w := httptest.NewRecorder()
		return relay(w, w, answer(3*relayed)) //nolint:bodyclose // the cleanup does
	}()
	if broken != http.ErrAbortHandler { //nolint:errorlint // net/http compares it so
		t.Errorf("a long answer that breaks off ended with %v", broken)
	}
}
