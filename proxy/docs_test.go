package proxy

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// page is docs/proxy.md.
func page(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile("../docs/proxy.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func block(t *testing.T, text, language string) string {
	t.Helper()
	m := regexp.MustCompile("(?s)```" + language + "\n(.*?)```").FindStringSubmatch(text)
	if m == nil {
		t.Fatalf("no %s block", language)
	}
	return m[1]
}

// TestPageConfiguration: the page's configuration is one that a proxy takes.
func TestPageConfiguration(t *testing.T) {
	path := filepath.Join(t.TempDir(), "proxy.yaml")
	writeFile(t, path, []byte(block(t, page(t), "yaml")))
	s, err := LoadSettings(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Check(); err != nil {
		t.Error(err)
	}
}

// TestPageNames every setting.
func TestPageNames(t *testing.T) {
	text := page(t)
	var walk func(typ reflect.Type)
	walk = func(typ reflect.Type) {
		for f := range typ.Fields() {
			key := f.Tag.Get("yaml")
			switch {
			case key == "":
			case f.Type.Kind() == reflect.Struct:
				walk(f.Type)
			case !strings.Contains(text, key):
				t.Errorf("%s is not on the page", key)
			case f.Tag.Get("doc") == "":
				t.Errorf("%s has no doc", key)
			}
		}
	}
	walk(reflect.TypeFor[Settings]())
}

// TestPageAnswer: the page's 403 is the one that is sent.
func TestPageAnswer(t *testing.T) {
	var want, got map[string]any
	if err := json.Unmarshal([]byte(block(t, page(t), "json")), &want); err != nil {
		t.Fatal(err)
	}
	e := start(t, options{})
	a := e.must(e.client(e.pki.grant(time.Hour, "GET /a"), true), "GET", "/accounts/7")
	if err := json.Unmarshal([]byte(a.body), &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-page +sent):\n%s", diff)
	}
}
