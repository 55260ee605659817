package main

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// The pattern in which each log store writes one entry, as strace shows it: how
// many bytes go where, and what is synced.
const (
	floorRounds = 300
	boltPages   = 5 * 4096 // bbolt: the pages that changed on the way to the entry, then the page that points at them
	boltMeta    = 4096
	walBatch    = 640 // raft-wal: one batch at the end of a file that is already that long
	floorFile   = 16 << 20
)

// floors prints how near a single writer comes to what the disk allows: each
// commit waits for the leader's write and then for a follower's.
func (r *report) floors(rates map[string][]float64) error {
	for _, f := range []struct {
		suffix string
		append func(file *os.File, at int64) error
	}{
		{"", func(file *os.File, at int64) error {
			if _, err := file.WriteAt(make([]byte, boltPages), boltMeta+at*boltPages%(floorFile-2*boltPages)); err != nil {
				return err
			}
			if err := syscall.Fdatasync(int(file.Fd())); err != nil {
				return err
			}
			if _, err := file.WriteAt(make([]byte, boltMeta), 0); err != nil {
				return err
			}
			return syscall.Fdatasync(int(file.Fd()))
		}},
		{".wal", func(file *os.File, at int64) error {
			if _, err := file.WriteAt(make([]byte, walBatch), at*walBatch); err != nil {
				return err
			}
			return file.Sync()
		}},
	} {
		took, err := r.floor(f.append)
		if err != nil {
			return err
		}
		rate := 1 / (2 * took.Seconds())
		r.note("writes, what the disk allows one writer%s: %.0f/s", f.suffix, rate)
		r.figure("control.w1_vs_fsync"+f.suffix, median(rates[f.suffix])/rate, "ratio")
	}
	return nil
}

// floor is the median time of one append.
func (r *report) floor(add func(file *os.File, at int64) error) (took time.Duration, err error) {
	file, err := os.Create(filepath.Join(r.dir, "floor"))
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, file.Close(), os.Remove(file.Name())) }()
	if err := errors.Join(file.Truncate(floorFile), file.Sync()); err != nil {
		return 0, err
	}
	times := make([]float64, 0, floorRounds)
	for at := range int64(floorRounds) {
		begin := time.Now()
		if err := add(file, at); err != nil {
			return 0, err
		}
		times = append(times, time.Since(begin).Seconds())
	}
	return time.Duration(median(times) * float64(time.Second)), nil
}
