package ca

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

const (
	secretMode fs.FileMode = 0o600
	publicMode fs.FileMode = 0o644
	folderMode fs.FileMode = 0o700

	// maxFile bounds every file that is read, so that a path to the wrong thing
	// ends in an error and not in an exhausted node.
	maxFile = 4 << 20
)

// writeFile puts content at path, whole or not at all, and returns once it is
// on disk. What was there is replaced.
func writeFile(path string, content []byte, mode fs.FileMode) error {
	return place(path, content, mode, os.Rename)
}

// createFile is writeFile for what must not be overwritten: the error wraps
// fs.ErrExist when path is there.
func createFile(path string, content []byte, mode fs.FileMode) error {
	// A hard link, unlike a rename, fails when its target exists, so two
	// concurrent writers cannot both believe that theirs is the key in use.
	return place(path, content, mode, func(from, to string) error {
		if err := os.Link(from, to); err != nil {
			return err
		}
		return os.Remove(from)
	})
}

func place(path string, content []byte, mode fs.FileMode, move func(from, to string) error) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".new-*") // mode 0600 from the start
	if err != nil {
		return fmt.Errorf("ca: write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("ca: write %s: %w", path, err)
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	if err := f.Chmod(mode); err != nil {
		return err
	}
	if _, err := f.Write(content); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := move(f.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

func makeFolder(dir string) error {
	if err := os.MkdirAll(dir, folderMode); err != nil {
		return fmt.Errorf("ca: %w", err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// readFile reads a regular file of at most maxFile bytes.
func readFile(path string) ([]byte, error) { return readChecked(path, 0o777) }

// readSecret is readFile for private keys: it refuses a file that anyone but its
// owner may touch. Whoever copied such a key can sign as this node for as long
// as its certificate lives, and nothing in the log would show it.
func readSecret(path string) ([]byte, error) { return readChecked(path, secretMode) }

func readChecked(path string, widest fs.FileMode) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	defer func() { _ = f.Close() }() // read only: nothing to lose
	// The open file is looked at, not the path: the path may be swapped in
	// between.
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: %s is not a regular file", ErrInvalid, path)
	}
	if mode := info.Mode().Perm(); mode&^widest != 0 {
		return nil, fmt.Errorf("%w: %s has mode %04o and may be read by others; chmod 600 it", ErrInvalid, path, mode)
	}
	content, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("ca: read %s: %w", path, err)
	}
	if len(content) > maxFile {
		return nil, fmt.Errorf("%w: %s has more than %d bytes", ErrInvalid, path, maxFile)
	}
	return content, nil
}
