package notify

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/hallpass/hallpass/grant"
)

// TestCauseIsVisible: whatever stands in an error, its cause is one that the state machine takes. A
// target with one that it does not could never be settled.
func TestCauseIsVisible(t *testing.T) {
	for r := range rune(utf8.MaxRune + 1) {
		if got := clean("a" + string(r) + "b"); strings.ContainsFunc(got, grant.HiddenInText) || !utf8.ValidString(got) {
			t.Fatalf("%U comes out as %q", r, got)
		}
	}
}

// TestNoCauseOfAReceivers: what a receiver writes where HTTP has no place for it is quoted by errors,
// and is not for the audit log.
func TestNoCauseOfAReceivers(t *testing.T) {
	for name, answer := range map[string]string{
		"a status":   "HTTP/1.1 hunter2 hunter2\r\n\r\n",
		"a header":   "HTTP/1.1 200 OK\r\nhunter2\r\n\r\n",
		"a location": "HTTP/1.1 302 Found\r\nLocation: http://[::1%gg/hunter2\r\nContent-Length: 0\r\n\r\n",
		"no HTTP":    "hunter2\r\n\r\n",
	} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			c, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = c.Write([]byte(answer))
			_ = c.Close()
		}))
		err := newPoster(nil, time.Now).post(t.Context(), s.URL, nil, []byte("{}"))
		s.Close()
		if err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := causeOf(&url.Error{Op: "Post", URL: "https://x.test/hunter2", Err: errors.New("hunter2")}); strings.Contains(got, "hunter2") {
		t.Error(got)
	}
}
