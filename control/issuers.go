package control

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/ca"
)

// InstallIssuers implements api.TrustBackend. Who may bring them, and whether a
// root in force has signed them, is decided in Apply.
func (b backend) InstallIssuers(ctx context.Context, call api.Call, in api.InstallInput) (out api.Installed, err error) {
	body := approval.InstallIssuer{Node: in.Node}
	for _, f := range []struct {
		name, text string
		into       *[]byte
	}{
		{"identity_issuer", in.IdentityIssuer, &body.IdentityIssuer},
		{"grant_issuer", in.GrantIssuer, &body.GrantIssuer},
		{"api_certificate", in.APICertificate, &body.APICertificate},
	} {
		if f.text == "" {
			continue
		}
		certs, err := ca.DecodeCertificates([]byte(f.text))
		if err != nil || len(certs) != 1 {
			return out, b.counted(ctx, api.NewProblem(api.CodeInvalid, f.name+": not one PEM certificate", "send what ca sign-node --renew wrote"))
		}
		*f.into = certs[0].Raw
	}
	res, err := b.propose(ctx, call, body)
	if err != nil {
		return out, b.counted(ctx, err)
	}
	installed, ok := res.Object.(approval.Installed)
	if !ok {
		return out, fmt.Errorf("result is a %T, not what was installed", res.Object)
	}
	return api.Installed{Node: installed.Node, Issuers: list(installed.Issuers)}, nil
}

// installOwn has the cluster record this node's own certificates, in its own
// name.
func (n *node) installOwn(ctx context.Context, body approval.InstallIssuer) error {
	pem := func(der []byte) string {
		certs, err := parseCertificates([][]byte{der})
		if len(der) == 0 || err != nil {
			return ""
		}
		return string(ca.EncodeCertificates(certs...))
	}
	in := api.InstallInput{
		Node: n.node.ID, IdentityIssuer: pem(body.IdentityIssuer), GrantIssuer: pem(body.GrantIssuer), APICertificate: pem(body.APICertificate),
	}
	if n.store.IsLeader() {
		_, err := backend{n}.InstallIssuers(ctx, api.Call{Caller: api.Caller{ID: n.node.SPIFFEID}}, in)
		return err
	}
	return n.askLeader(ctx, "/v1/issuers", in)
}

// askLeader makes a call as this node, the way that calls take which it forwards.
func (n *node) askLeader(ctx context.Context, path string, in any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	leaf := n.custody.get().api.Leaf
	who, err := n.verifier.verify([]*x509.Certificate{leaf})
	if err != nil {
		return fmt.Errorf("this node's own API certificate: %w", err)
	}
	leader, ok := n.store.Leader()
	if !ok {
		return noLeader()
	}
	ctx, cancel := context.WithTimeout(api.WithRequestID(ctx, api.NewRequestID()), 2*n.limits.Propose)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, path, http.NoBody)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := n.forward.do(ctx, leader, http.MethodPost, path, n.forwardHeader(req, who), body)
	if err != nil {
		return forwardProblem(req, err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(resp.Body, relayed))
	if err != nil {
		return forwardProblem(req, err)
	}
	if resp.StatusCode < http.StatusMultipleChoices {
		return nil
	}
	p := new(api.Problem)
	if err := json.Unmarshal(text, p); err != nil || p.Code == "" {
		return fmt.Errorf("the leader answered %s", resp.Status)
	}
	p.Status = resp.StatusCode
	return p
}

// NodeIssuers implements api.TrustBackend, from the node's own state: whoever
// renews issuers asks every node which are denied, so that one that lies is one
// among several.
func (b backend) NodeIssuers(_ context.Context, call api.Call) (out api.NodeIssuers, err error) {
	now := b.now()
	err = b.local(func(s approval.State) error {
		if err := b.mayReadIssuers(s, call.Caller.ID); err != nil {
			return err
		}
		c, err := s.Cluster()
		if err != nil {
			return err
		}
		out = api.NodeIssuers{Node: b.node.node.ID, Now: now.UTC(), Members: []string{}, Issuers: []api.NodeIssuer{}}
		for _, i := range c.Issuers {
			if i.NotAfter <= approval.MillisOf(now) || i.Role == approval.RoleEmergency {
				continue // an emergency issuer is no node's
			}
			certs, err := parseCertificates([][]byte{i.DER})
			if err != nil {
				return err
			}
			out.Issuers = append(out.Issuers, api.NodeIssuer{
				ID: i.ID, Node: i.Node, Role: string(i.Role), NotAfter: i.NotAfter.Time(),
				Denied: i.Denied != 0 && !i.Orphan, Orphan: i.Orphan, Retired: i.Retired != 0, Certificate: string(ca.EncodeCertificates(certs...)),
			})
		}
		return nil
	})
	if errors.Is(err, approval.ErrNotFound) {
		return out, unready()
	}
	out.Members = slices.AppendSeq(out.Members, maps.Keys(b.store.Membership()))
	slices.Sort(out.Members)
	return out, err
}

// mayReadIssuers admits persons, services and nodes: a stranger of a federated
// domain has no business with what the nodes sign with.
func (b backend) mayReadIssuers(s approval.State, id spiffeid.ID) error {
	if id.MemberOf(b.trustDomain) && (strings.HasPrefix(id.Path(), "/service/") || strings.HasPrefix(id.Path(), "/node/")) {
		return nil
	}
	e, err := eyesOf(s, id)
	if err != nil {
		return err
	}
	return e.mapped()
}

// NodeRequest implements api.TrustBackend. Everyone may ask: it is public.
func (b backend) NodeRequest(context.Context, api.Call) (out api.NodeRequest, err error) {
	r, err := b.node.node.Request()
	if errors.Is(err, fs.ErrNotExist) {
		return out, api.NewProblem(api.CodeNotFound, "the node's key folder holds no request", "run server init on the node")
	}
	if err != nil {
		return out, fmt.Errorf("node request: %w", err)
	}
	text, err := r.Encode()
	return api.NodeRequest{Node: r.ID, Request: string(text)}, err
}

// Roots implements api.TrustBackend. Everyone may ask: what counts is who signed
// the documents.
func (b backend) Roots(context.Context, api.Call) (out api.Roots, err error) {
	err = b.local(func(s approval.State) error {
		for _, r := range []struct {
			role approval.Role
			td   string
			into *api.RootSet
		}{
			{approval.RoleIdentity, b.trustDomain.Name(), &out.Identity},
			{approval.RoleGrant, b.grantDomain.Name(), &out.Grants},
		} {
			roots, err := s.Roots(r.role)
			if err != nil {
				return err
			}
			if *r.into, err = wireRoots(roots, r.td); err != nil {
				return err
			}
		}
		return nil
	})
	if errors.Is(err, approval.ErrNotFound) {
		return out, unready()
	}
	return out, err
}

func wireRoots(r approval.Roots, trustDomain string) (api.RootSet, error) {
	certs, err := parseCertificates(r.InForce)
	return api.RootSet{
		TrustDomain: trustDomain, Sequence: r.Sequence, Roots: string(ca.EncodeCertificates(certs...)),
		Documents: mapped(r.Documents, func(d []byte) string { return string(d) }),
	}, err
}

// SetRoots implements api.TrustBackend.
func (b backend) SetRoots(ctx context.Context, call api.Call, in api.RootsInput) (out api.RootSet, err error) {
	res, err := b.proposeAsAdmin(ctx, call, approval.SetRoots{Document: []byte(in.Document)})
	if err != nil {
		return out, err
	}
	roots, ok := res.Object.(approval.Roots)
	if !ok {
		return out, fmt.Errorf("result is a %T, not roots", res.Object)
	}
	td := b.trustDomain
	if roots.Role == approval.RoleGrant {
		td = b.grantDomain
	}
	return wireRoots(roots, td.Name())
}
