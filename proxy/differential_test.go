package proxy

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"slices"
	"testing"
)

// reading is one request as somebody reads it.
type reading struct{ method, target, host, body string }

// netHTTPReads is how net/http's own parser, which is the most lenient reader on
// the way, reads a client's bytes: the whole requests in them, in order.
func netHTTPReads(data []byte) []reading {
	r := bufio.NewReader(bytes.NewReader(data))
	var all []reading
	for {
		req, err := http.ReadRequest(r)
		if err != nil {
			return all
		}
		body, err := io.ReadAll(req.Body)
		_ = req.Body.Close()
		if err != nil {
			return all
		}
		all = append(all, reading{req.Method, req.RequestURI, req.Host, string(body)})
	}
}

// checkReadings has what arrived whole at the upstream be among what net/http reads
// of the client's bytes, in that order: same method, target, host and body. A
// request that one of the two sees and the other does not, or sees with other
// bytes, is one that was smuggled.
func checkReadings(t *testing.T, data []byte, arrived []reading) {
	t.Helper()
	want := netHTTPReads(data)
	for _, a := range arrived {
		i := slices.Index(want, a)
		if i < 0 {
			t.Errorf("the upstream was asked %q; net/http reads %q in what the client sent", a, netHTTPReads(data))
			return
		}
		want = want[i+1:]
	}
}

// TestReadings: the comparison itself tells requests apart.
func TestReadings(t *testing.T) {
	data := []byte("POST /a/1 HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabcGET /a/2 HTTP/1.1\r\nHost: h\r\n\r\nPOST /a/3 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nxyz\r\n0\r\n\r\nPOST /a/4 HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nabc")
	all := []reading{{"POST", "/a/1", "h", "abc"}, {"GET", "/a/2", "h", ""}, {"POST", "/a/3", "h", "xyz"}}
	if got := netHTTPReads(data); !slices.Equal(got, all) {
		t.Fatalf("%q", got)
	}
	checkReadings(t, data, all)
	checkReadings(t, data, []reading{all[0], all[2]})
	for _, bad := range [][]reading{{{"GET", "/a/1", "h", "abc"}}, {{"POST", "/a/1", "h", "ab"}}, {{"POST", "/a/1", "g", "abc"}}, {all[1], all[0]}, {all[0], all[0]}, {{"POST", "/a/4", "h", "abc"}}} {
		noted := &testing.T{}
		checkReadings(noted, data, bad)
		if !noted.Failed() {
			t.Errorf("%q passes", bad)
		}
	}
}
