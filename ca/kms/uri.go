package kms

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

var (
	// ErrNoKMS is returned by a binary that was built without the tag kms.
	ErrNoKMS = errors.New("kms: this build of hallpass opens no KMS: use hallpass-kms (make build-kms)")

	// ErrURI is returned when a URI names no KMS, or has a secret in it.
	ErrURI = errors.New("kms: bad URI")

	// ErrPIN is returned when there is no PIN where the URI says.
	ErrPIN = errors.New("kms: PIN")
)

// maxPIN bounds what is read of a PIN's file.
const maxPIN = 4096

const pinSource = "pin-source"

// secrets are the attributes that go.step.sm/crypto reads a secret from.
func secrets() []string {
	return []string{"pin-value", "pin-prompt", "pin", "password", "client-secret", "management-key", "secret", "token-secret", "credentials"}
}

// Redact returns a URI without the values of its secrets, for messages. Whatever is
// not understood is left out: it may be a secret that was misspelt.
func Redact(uri string) string {
	scheme, rest, ok := strings.Cut(uri, ":")
	if !ok {
		return "…"
	}
	var b strings.Builder
	b.WriteString(scheme + ":")
	for i, f := range fields(rest) {
		if i > 0 {
			b.WriteByte(f.before)
		}
		b.WriteString(f.name)
		if f.hasValue {
			value := f.value
			if secret(f.name) {
				value = "…"
			}
			b.WriteString("=" + value)
		}
	}
	return b.String()
}

func secret(name string) bool {
	if plain, err := url.QueryUnescape(name); err == nil {
		name = plain // %70in-value is pin-value to whoever opens it
	}
	return slices.Contains(secrets(), strings.ToLower(strings.TrimSpace(name)))
}

// field is one attribute of a URI, with the byte before it.
type field struct {
	before      byte
	name, value string
	hasValue    bool
}

func fields(rest string) (out []field) {
	for before := byte(0); ; {
		end := strings.IndexAny(rest, ";&?")
		text := rest
		if end >= 0 {
			text = rest[:end]
		}
		f := field{before: before}
		f.name, f.value, f.hasValue = strings.Cut(text, "=")
		out = append(out, f)
		if end < 0 {
			return out
		}
		before, rest = rest[end], rest[end+1:]
	}
}

// address is a URI that names a KMS and holds no secret, and the PIN that goes with
// it.
type address struct {
	uri string // without its pin-source
	pin string
}

// String has no PIN.
func (a address) String() string { return a.uri }

// Check refuses a URI that has a secret in it, or that is none.
func Check(uri string) error {
	scheme, rest, ok := strings.Cut(uri, ":")
	if !ok || scheme == "" || rest == "" || strings.ContainsAny(uri, "\x00\n\r#") {
		return fmt.Errorf("%w: want SCHEME:NAME=VALUE;…, such as pkcs11:module-path=/usr/lib/…;token=hallpass?pin-source=/run/…", ErrURI)
	}
	for _, f := range fields(rest) {
		if secret(f.name) {
			return fmt.Errorf("%w: %s: %s would be read by whoever sees the command line or the folder; put it into a file, or the environment, and name that: pin-source=/path or pin-source=env:NAME",
				ErrURI, Redact(uri), f.name)
		}
	}
	return nil
}

// resolve reads the PIN that a URI names.
func resolve(uri string) (address, error) {
	if err := Check(uri); err != nil {
		return address{}, err
	}
	scheme, rest, _ := strings.Cut(uri, ":")
	a := address{}
	var b strings.Builder
	b.WriteString(scheme + ":")
	from, first := "", true
	for _, f := range fields(rest) {
		if f.name == pinSource {
			if from != "" {
				return address{}, fmt.Errorf("%w: %s: %s is there twice", ErrURI, Redact(uri), pinSource)
			}
			from = f.value
			if from == "" {
				return address{}, fmt.Errorf("%w: %s: %s is empty", ErrURI, Redact(uri), pinSource)
			}
			continue
		}
		if !first {
			b.WriteByte(f.before)
		}
		first = false
		b.WriteString(f.name)
		if f.hasValue {
			b.WriteString("=" + f.value)
		}
	}
	a.uri = b.String()
	if from == "" {
		return a, nil
	}
	from, err := url.PathUnescape(from)
	if err != nil {
		return address{}, fmt.Errorf("%w: %s: %s: %w", ErrURI, Redact(uri), pinSource, err)
	}
	a.pin, err = readPIN(from)
	return a, err
}

// readPIN reads a PIN from a file that nobody but its owner may read, or from the
// environment.
func readPIN(from string) (string, error) {
	if name, ok := strings.CutPrefix(from, "env:"); ok {
		pin := strings.TrimSpace(os.Getenv(name))
		if pin == "" {
			return "", fmt.Errorf("%w: the variable %s is empty, or not there", ErrPIN, name)
		}
		return pin, nil
	}
	path := strings.TrimPrefix(strings.TrimPrefix(from, "file:"), "//")
	if !filepath.IsAbs(path) {
		return "", fmt.Errorf("%w: %s=%s: want an absolute path, or env:NAME", ErrPIN, pinSource, from)
	}
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrPIN, err)
	}
	defer func() { _ = f.Close() }() // read only: nothing to lose
	info, err := f.Stat()
	switch {
	case err != nil:
		return "", fmt.Errorf("%w: %w", ErrPIN, err)
	case info.IsDir():
		return "", fmt.Errorf("%w: %s is a folder", ErrPIN, path)
	case info.Mode().Perm()&0o077 != 0:
		return "", fmt.Errorf("%w: %s has mode %04o, and others may have read it: chmod 600, and change the PIN", ErrPIN, path, info.Mode().Perm())
	}
	text, err := io.ReadAll(io.LimitReader(f, maxPIN))
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrPIN, err)
	}
	pin := strings.TrimSpace(string(text))
	if pin == "" {
		return "", fmt.Errorf("%w: %s is empty", ErrPIN, path)
	}
	return pin, nil
}

// masked is an error whose text has no PIN in it, whatever a library put there.
type masked struct {
	err error
	pin string
}

func (m masked) Error() string {
	if m.pin == "" {
		return m.err.Error()
	}
	return strings.ReplaceAll(m.err.Error(), m.pin, "…")
}

func (m masked) Unwrap() error { return m.err }
