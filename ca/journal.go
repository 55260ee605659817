package ca

import (
	"bufio"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// maxJournalLine is far above what any line has.
const maxJournalLine = 64 << 10

// journalLine is one line of issued.jsonl: what a root was asked to sign.
type journalLine struct {
	Time   time.Time `json:"time"`
	What   string    `json:"what"`
	Record Record    `json:"record"`
}

// journal adds a line. It is on the disk when journal returns.
func (o *offline) journal(line journalLine) (err error) {
	text, err := json.Marshal(line)
	if err != nil {
		return fmt.Errorf("ca: journal: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(o.dir, journalFile), os.O_RDWR|os.O_APPEND|os.O_CREATE, secretMode)
	if err != nil {
		return fmt.Errorf("ca: journal: %w", err)
	}
	text, err = afterTorn(f, append(text, '\n'))
	if err == nil {
		_, err = f.Write(text)
	}
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("ca: journal: %w", err)
	}
	return nil
}

// afterTorn begins a new line where a machine stopped in the middle of the last
// one, which would otherwise take this one with it.
func afterTorn(f *os.File, text []byte) ([]byte, error) {
	info, err := f.Stat()
	if err != nil || info.Size() == 0 {
		return text, err
	}
	last := make([]byte, 1)
	if _, err := f.ReadAt(last, info.Size()-1); err != nil {
		return nil, err
	}
	if last[0] != '\n' {
		return append([]byte{'\n'}, text...), nil
	}
	return text, nil
}

// signedHere is what issued.jsonl says: whatever is not in it, these roots have not
// signed, whoever shows it.
type signedHere struct {
	issuer map[string]string      // TBS hash → id of the root
	times  map[string][]time.Time // what → when
}

// readJournal reads issued.jsonl. A line that is none, as one that was torn, says
// nothing.
func readJournal(dir string) (signedHere, error) {
	s := signedHere{issuer: make(map[string]string), times: make(map[string][]time.Time)}
	f, err := os.Open(filepath.Join(dir, journalFile))
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return s, fmt.Errorf("ca: journal: %w", err)
	}
	defer func() { _ = f.Close() }() // read only: nothing to lose
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, maxJournalLine)
	for lines.Scan() {
		line, err := parseJournalLine(lines.Text())
		if err != nil {
			continue
		}
		s.issuer[line.Record.TBSHash] = line.Record.Issuer
		s.times[line.What] = append(s.times[line.What], line.Time)
	}
	if err := lines.Err(); err != nil {
		return s, fmt.Errorf("ca: %s: %w", journalFile, err)
	}
	return s, nil
}

func parseJournalLine(text string) (line journalLine, err error) {
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&line); err != nil {
		return line, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return line, errors.New("more than one value")
	}
	return line, nil
}

// has reports whether a root signed a certificate here.
func (s signedHere) has(c *x509.Certificate, root string) bool {
	by, ok := s.issuer[hashOf(c.RawTBSCertificate).String()]
	return ok && by == root
}

// since counts what was signed under a name after t. A time that is still to come,
// of a clock that went back, counts too.
func (s signedHere) since(what string, t time.Time) (n int) {
	for _, at := range s.times[what] {
		if at.After(t) {
			n++
		}
	}
	return n
}

// sign signs with a root what its journal holds: the offline counterpart of a
// commit. The line is on disk before the key is used, so that whoever audits
// the folder finds every certificate that the roots ever signed.
func (o *offline) sign(a *authority, template *x509.Certificate, now time.Time) (*x509.Certificate, error) {
	ticket, err := a.prepare(template)
	if err != nil {
		return nil, err
	}
	what := template.Subject.CommonName
	if what == "" && len(template.URIs) == 1 {
		what = template.URIs[0].String()
	}
	if err := o.journal(journalLine{Time: now.UTC(), What: what, Record: ticket.Record()}); err != nil {
		return nil, err
	}
	chain, err := ticket.Sign(ticket.Record())
	if err != nil {
		return nil, err
	}
	return chain[0], nil
}

// signStatement signs text that is no certificate with a root.
func (o *offline) signStatement(a *authority, what string, text []byte, now time.Time) ([]byte, error) {
	hash := hashOf(text)
	line := journalLine{Time: now.UTC(), What: what, Record: Record{TBSHash: hash.String(), Issuer: a.id}}
	if err := o.journal(line); err != nil {
		return nil, err
	}
	gate := a.cas.gate
	defer gate.commit(hash)()
	return gate.Sign(nil, hash[:], crypto.SHA256)
}
