package testenv

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/audit"
	"github.com/hallpass/hallpass/control"
	"github.com/hallpass/hallpass/raftstore"
)

// handed is a certificate that left the cluster.
type handed struct {
	grant string
	leaf  *x509.Certificate
}

// CheckInvariants returns what is wrong with anything that happened so far: a
// node whose state breaks an invariant, two nodes that differ, or a certificate
// in somebody's hands that no quorum committed. Running nodes get a few seconds
// to catch up first; nodes that are not running are left out.
func (e *Env) CheckInvariants() error {
	e.mu.Lock()
	certs := slices.Clone(e.handed)
	e.mu.Unlock()
	target := e.catchUp()
	heads := make(map[int64]string) // audit size → root
	var errs []error
	for _, n := range e.nodes {
		srv := n.server()
		if srv == nil {
			continue
		}
		err := control.CheckStore(context.WithoutCancel(e.t.Context()), srv.Store())
		err = errors.Join(err, srv.Store().View(func(r raftstore.Reader, index uint64) error {
			if index < target {
				return checkNode(r, nil, heads) // it may not have heard of the last certificates
			}
			return checkNode(r, certs, heads)
		}))
		if err != nil {
			errs = append(errs, fmt.Errorf("node %s: %w", n.ID, err))
		}
	}
	return errors.Join(errs...)
}

// catchUp lets the running nodes come to where the furthest of them is, as far
// as there is a quorum to bring them there, and returns that index.
func (e *Env) catchUp() (target uint64) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(e.t.Context()), 5*time.Second)
	defer cancel()
	for _, n := range e.nodes {
		if srv := n.server(); srv != nil {
			target = max(target, srv.Store().Index())
		}
	}
	for _, n := range e.nodes {
		srv := n.server()
		for srv != nil && srv.Store().Index() < target {
			if _, err := srv.Store().Wait(ctx, srv.Store().Index()); err != nil {
				break
			}
		}
	}
	return target
}

func checkNode(r approval.Reader, certs []handed, heads map[int64]string) error {
	s := approval.Read(r)
	size, err := s.AuditSize()
	if err != nil {
		return err
	}
	root, err := audit.Root(s, size)
	if err != nil {
		return err
	}
	// Two logs of one length with two roots are two histories.
	if other, ok := heads[size]; ok && other != root.String() {
		return fmt.Errorf("its audit log of %d entries has the root %s, another node's has %s", size, root, other)
	}
	heads[size] = root.String()
	for _, c := range certs {
		if err := committed(s, c); err != nil {
			return err
		}
	}
	return nil
}

// committed checks invariant 1 on one certificate.
func committed(s approval.State, c handed) error {
	serial := c.leaf.SerialNumber.Text(16)
	issue, err := s.Issue(serial)
	if err != nil {
		return fmt.Errorf("certificate %s of grant %s was handed out and is not in the log: %w", serial, c.grant, err)
	}
	sum := sha256.Sum256(c.leaf.RawTBSCertificate)
	if issue.TBSHash != hex.EncodeToString(sum[:]) {
		return fmt.Errorf("certificate %s of grant %s says something else than was committed", serial, c.grant)
	}
	return nil
}
