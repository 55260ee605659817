package grant

import (
	"fmt"
	"strings"
	"testing"
)

// positions are the places of an ID where text stands: %s is where.
var positions = map[string]string{
	"service":             "spiffe://grants.acme.test/v1/%s/_can/tcp" + testEnd,
	"service inside":      "spiffe://grants.acme.test/v1/a%sb/_can/tcp" + testEnd,
	"method":              testStart + "http/%s/a" + testEnd,
	"path segment":        testStart + "http/GET/%s" + testEnd,
	"path segment inside": testStart + "http/GET/a%sb/c" + testEnd,
	"gRPC service":        testStart + "grpc/%s/C" + testEnd,
	"gRPC method":         testStart + "grpc/a.B/%s" + testEnd,
	"gRPC method inside":  testStart + "grpc/a.B/C%sD" + testEnd,
	"database":            testStart + "postgres/%s/r" + testEnd,
	"role":                testStart + "postgres/d/%s" + testEnd,
	"role inside":         testStart + "postgres/d/a%sb" + testEnd,
	"subject's domain":    testStart + "tcp/_for/a%sb.test/user/alice/_id/" + testGrant,
	"subject's segment":   testStart + "tcp/_for/acme.test/%s/alice/_id/" + testGrant,
	"subject's last":      testStart + "tcp/_for/acme.test/user/a%sb/_id/" + testGrant,
	"grant ID":            testStart + "tcp/_for/acme.test/user/alice/_id/%s199f3a0-5c1e-7a3b-9c4d-2e5f60718293",
	"version":             "spiffe://grants.acme.test/v%s/payments/_can/tcp" + testEnd,
	"trust domain":        "spiffe://grants.acme.tes%s/v1/payments/_can/tcp" + testEnd,
	"end":                 testStart + "tcp" + testEnd + "%s",
	"start":               "%sspiffe://grants.acme.test/v1/payments/_can/tcp" + testEnd,
}

// TestEveryByteInAnID puts each byte, raw and in each escape there could be, alone and in
// pairs, into each place of an ID: the package and the second reading agree on all.
func TestEveryByteInAnID(t *testing.T) {
	taken := 0
	try := func(uri string) {
		t.Helper()
		id, err := ParseID(uri, grants())
		if err == nil {
			taken++
			checkID(t, uri, id)
		} else if _, ref := refParse(uri); ref == nil {
			t.Fatalf("the second reading takes what ParseID refuses: %v", err)
		}
	}
	for _, format := range positions {
		for b := range 256 {
			raw := string([]byte{byte(b)})
			for _, s := range []string{
				raw, "_" + raw, raw + "_", fmt.Sprintf("_%02X", b), fmt.Sprintf("_%02x", b), fmt.Sprintf("%%%02X", b),
				raw + raw, "." + raw, raw + ".", fmt.Sprintf("_C3_%02X", b), fmt.Sprintf("__%02X", b), "/" + raw,
			} {
				try(strings.Replace(format, "%s", s, 1))
			}
		}
	}
	if taken < 1000 {
		t.Errorf("only %d IDs were valid", taken)
	}
}

// TestEveryByteInAPathText: of each byte in the path of the text form, raw and percent-encoded,
// what it means and whether it is taken.
func TestEveryByteInAPathText(t *testing.T) {
	for b := range 256 {
		c := byte(b)
		inPath := c < 0x80 && c != '/' && c != '\\' && !isControl(c)
		for _, hex := range []string{"%%%02X", "%%%02x"} {
			text := "GET /x" + fmt.Sprintf(hex, b) + "y"
			p, err := ParsePermission(text)
			if (err == nil) != inPath {
				t.Fatalf("ParsePermission(%q) = %q, %v", text, p, err)
			}
			if err == nil && p.parts().segs[0].text != "x"+string([]byte{c})+"y" {
				t.Fatalf("ParsePermission(%q) = %q", text, p.enc)
			}
		}
		text := "GET /x" + string([]byte{c}) + "y"
		p, err := ParsePermission(text)
		// Raw, all that could mean something else is refused. "/" is a separator.
		if want := c == '/' || inPath && !strings.ContainsRune("%*?#{} ", rune(c)); (err == nil) != want {
			t.Fatalf("ParsePermission(%q) = %q, %v", text, p, err)
		}
		if err == nil {
			checkPermission(t, p)
			if got := p.parts().segs; c != '/' && got[0].text != "x"+string([]byte{c})+"y" || c == '/' && len(got) != 2 {
				t.Fatalf("ParsePermission(%q) = %q", text, p.enc)
			}
		}
	}
}

// TestEveryByteInATextName: of each byte in a name of the text form, whether it is taken and
// that it means itself.
func TestEveryByteInATextName(t *testing.T) {
	for b := range 256 {
		raw := string([]byte{byte(b)})
		bare := strings.Contains("abcdefghijklmnopqrstuvwxyz0123456789_-$", raw)
		check := func(text, want string, ok bool, get func(parts) string) {
			t.Helper()
			p, err := ParsePermission(text)
			if (err == nil) != ok {
				t.Fatalf("ParsePermission(%q) = %q, %v", text, p, err)
			}
			if err != nil {
				return
			}
			checkPermission(t, p)
			if got := get(p.parts()); got != want {
				t.Fatalf("ParsePermission(%q) has %q", text, got)
			}
		}
		db, role := func(pp parts) string { return pp.a }, func(pp parts) string { return pp.b }
		check("postgres x"+raw+"y as r", "x"+raw+"y", bare, db)
		check("postgres d as "+raw, raw, bare, role)
		quoted := strings.ReplaceAll(raw, `"`, `""`)
		check(`postgres "`+quoted+`" as r`, raw, b < 0x80, db)
		check(`postgres d as "x`+quoted+`y"`, "x"+raw+"y", b < 0x80, role)
		check(fmt.Sprintf(`postgres U&"\%04X" as r`, b), string(rune(b)), true, db)
		check("grpc a.B/"+raw, raw, b < 0x80 && !isControl(byte(b)) && !strings.Contains("%?#{}/ ", raw), func(pp parts) string {
			if pp.b == "" && raw == "*" {
				return "*"
			}
			return pp.b
		})
		check(fmt.Sprintf("grpc a%%%02XB/C", b), "a"+raw+"B", b < 0x80, db)
	}
}

// TestEveryByteInATarget: of each byte in a request's path and query, raw and percent-encoded,
// whether it is taken, with the second reading.
func TestEveryByteInATarget(t *testing.T) {
	for b := range 256 {
		raw := string([]byte{byte(b)})
		for _, s := range []string{raw, fmt.Sprintf("%%%02X", b), fmt.Sprintf("%%%02x", b), "%" + raw + "0", "%2" + raw, "." + raw, raw + ".", fmt.Sprintf("%%C3%%%02x", b)} {
			for _, target := range []string{"/" + s, "/x" + s + "y/z", "/x?" + s, s + "/x"} {
				checkPath(t, target)
			}
		}
	}
}
