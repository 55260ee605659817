package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hallpass/hallpass/ca"
)

func try(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func modeOf(t *testing.T, path string) fs.FileMode {
	t.Helper()
	info, err := os.Lstat(path)
	try(t, err)
	return info.Mode().Perm()
}

// A key is its owner's alone, whatever the umask, and stays the same.
func TestFolderKey(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	f := folder(dir)
	made, err := f.key()
	try(t, err)
	if got := modeOf(t, f.file(ca.FolderKey)); got != 0o600 {
		t.Errorf("key.pem has mode %04o", got)
	}
	if got := modeOf(t, dir); got != 0o700 {
		t.Errorf("the folder has mode %04o", got)
	}
	again, err := f.key()
	try(t, err)
	first, err := ca.Fingerprint(made.Public())
	try(t, err)
	second, err := ca.Fingerprint(again.Public())
	try(t, err)
	if first != second {
		t.Error("the key was replaced")
	}
	try(t, f.write(ca.FolderChain, "x"))
	if got := modeOf(t, f.file(ca.FolderChain)); got != 0o644 {
		t.Errorf("cert.pem has mode %04o", got)
	}
}

// What somebody else may have prepared is not used, and what they point at is not written.
func TestFolderOfOthers(t *testing.T) {
	victim := filepath.Join(t.TempDir(), "victim")
	try(t, os.WriteFile(victim, []byte("precious"), 0o600))
	for name, tt := range map[string]struct {
		prepare func(dir string) error
		says    string
	}{
		"a folder for everybody":  {func(dir string) error { return os.Chmod(dir, 0o777) }, "everybody may put a key there"},
		"a sticky one, like /tmp": {func(dir string) error { return os.Chmod(dir, 0o777|fs.ModeSticky) }, "everybody may put a key there"},
		"a key that others read": {func(dir string) error {
			if _, err := folder(dir).key(); err != nil {
				return err
			}
			return os.Chmod(filepath.Join(dir, ca.FolderKey), 0o644)
		}, "chmod 600"},
		"a link to nothing yet": {func(dir string) error {
			return os.Symlink(filepath.Join(dir, "elsewhere"), filepath.Join(dir, ca.FolderKey))
		}, "file exists"},
		"a folder for a key": {func(dir string) error { return os.Mkdir(filepath.Join(dir, ca.FolderKey), 0o700) }, "is no file"},
		"something else for a key": {func(dir string) error {
			return os.WriteFile(filepath.Join(dir, ca.FolderKey), []byte("hello"), 0o600)
		}, "PEM"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			try(t, tt.prepare(dir))
			if _, err := folder(dir).csr(); err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%v, want …%s…", err, tt.says)
			}
			if _, err := os.Lstat(filepath.Join(dir, "elsewhere")); err == nil {
				t.Error("a key was written where the link points")
			}
		})
	}
	// A link in the place of a public file is replaced, not followed.
	f := folder(t.TempDir())
	try(t, os.Symlink(victim, f.file(ca.FolderChain)))
	try(t, f.write(ca.FolderChain, "new"))
	if text, err := os.ReadFile(victim); err != nil || string(text) != "precious" {
		t.Errorf("the file behind the link is %q, %v", text, err)
	}
	if text, err := os.ReadFile(f.file(ca.FolderChain)); err != nil || string(text) != "new" {
		t.Errorf("cert.pem is %q, %v", text, err)
	}
}
