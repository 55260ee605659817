package signer

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/ca"
	"github.com/hallpass/hallpass/trust"
)

// answer is what one node said.
type answer struct {
	node    string
	issuers api.NodeIssuers
	request ca.NodeRequest // zero: it showed none
	err     error
}

// answers are what the nodes said, each asked by itself.
type answers []answer

// ask asks every node of the manifest at once.
func (s *Signer) ask(ctx context.Context, r *ca.Renewer) answers {
	nodes := r.Manifest().Nodes
	all := make(answers, len(nodes))
	var group sync.WaitGroup
	for i, n := range nodes {
		group.Go(func() {
			all[i] = answer{node: n.ID}
			all[i].issuers, all[i].request, all[i].err = s.askOne(ctx, r, n)
		})
	}
	group.Wait()
	return all
}

func (s *Signer) askOne(ctx context.Context, r *ca.Renewer, n ca.NodeEntry) (out api.NodeIssuers, request ca.NodeRequest, err error) {
	cl, err := s.client(r, n)
	if err != nil {
		return out, request, err
	}
	defer cl.Close()
	if out, err = cl.NodeIssuers(ctx); err != nil {
		return out, request, err
	}
	if shown, err := cl.NodeRequest(ctx); err == nil {
		request, _ = ca.ParseNodeRequest([]byte(shown.Request)) // for people to be told of; nothing is signed by it
	}
	return out, request, nil
}

// counted are the answers that count.
func (a answers) counted() answers {
	return slices.DeleteFunc(slices.Clone(a), func(one answer) bool { return one.err != nil || a.thrownOut(one.node) })
}

// most is how many of the cluster's nodes are a majority. All of them were asked.
func (a answers) most() int { return len(a)/2 + 1 }

// thrownOut says that a majority knows an issuer of a node as denied: it has no say
// any more. One that says so of the others would otherwise silence them.
func (a answers) thrownOut(node string) bool {
	accusers := 0
	for _, one := range a {
		if one.err == nil && one.node != node && slices.ContainsFunc(one.issuers.Issuers, func(i api.NodeIssuer) bool { return i.Node == node && i.Denied }) {
			accusers++
		}
	}
	return accusers >= a.most()
}

// enough says whether so many nodes answered that a denial which a quorum
// acknowledged is among what they know, and whether their clocks agree with ours.
func (a answers) enough(now time.Time) error {
	counted := a.counted()
	if len(counted) < a.most() {
		var errs []error
		for _, one := range a {
			if one.err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", one.node, one.err))
			}
		}
		return fmt.Errorf("%d of %d nodes said what is denied, and %d have to: %w", len(counted), len(a), a.most(), errors.Join(errs...))
	}
	off := make([]time.Duration, len(counted))
	for i, one := range counted {
		off[i] = now.Sub(one.issuers.Now)
	}
	slices.Sort(off)
	if median := off[len(off)/2]; median.Abs() > maxSkew {
		// What is signed now would begin, or end, in another time than the nodes'.
		return fmt.Errorf("the clock here is %s off the nodes'", median.Round(time.Second))
	}
	return nil
}

// forbids says why a node must not be renewed: anyone's no is enough.
func (a answers) forbids(r *ca.Renewer, node string, last ca.NodeCertificates) error {
	if r.Denied(last) {
		return errors.New("denied by a roots document: it needs new keys, signed with ca sign-node --renew")
	}
	for _, one := range a.counted() {
		for _, i := range one.issuers.Issuers {
			if !i.Denied && !i.Retired {
				continue
			}
			certs, err := ca.DecodeCertificates([]byte(i.Certificate))
			if err != nil || len(certs) != 1 || trust.ID(certs[0]) != i.ID {
				return fmt.Errorf("node %s says that an issuer is out of use, and not which", one.node)
			}
			// By its key: another certificate of a stolen key is the thief's as well.
			for _, mine := range []*x509.Certificate{last.IdentityIssuer, last.GrantIssuer} {
				if slices.Equal(mine.RawSubjectPublicKeyInfo, certs[0].RawSubjectPublicKeyInfo) {
					return fmt.Errorf("its %s issuer %.12s is out of use: the node needs new keys, signed with ca sign-node --renew, or is gone: ca sign-node --drop", i.Role, i.ID)
				}
			}
		}
	}
	for _, one := range a.counted() {
		if !slices.Contains(one.issuers.Members, node) {
			return fmt.Errorf("not a member of the cluster, says %s: it is renewed once it has joined; if it is gone, ca sign-node --drop", one.node)
		}
	}
	return nil
}

// has reports whether the cluster has a node's issuers, by the word of a majority:
// one alone could keep a node from its renewal. Giving them twice changes nothing.
func (a answers) has(c ca.NodeCertificates) bool {
	knowing := 0
	for _, one := range a.counted() {
		knows := func(cert *x509.Certificate) bool {
			return slices.ContainsFunc(one.issuers.Issuers, func(i api.NodeIssuer) bool { return i.ID == trust.ID(cert) })
		}
		if knows(c.IdentityIssuer) && knows(c.GrantIssuer) {
			knowing++
		}
	}
	return knowing >= a.most()
}

// wants says that a node shows a request for other keys than it has, for an operator
// to confirm.
func (a answers) wants(node string, last ca.NodeCertificates) error {
	for _, one := range a {
		if one.node != node || one.err != nil || one.request.ID == "" || one.request.Asks(last) {
			continue
		}
		fingerprint, err := one.request.Fingerprint()
		if err != nil {
			return err
		}
		return fmt.Errorf("it asks for other keys, in the request with the fingerprint %s: if that is right, have it signed with ca sign-node --renew", fingerprint)
	}
	return nil
}
