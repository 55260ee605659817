package proxy

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallpass/hallpass/trust"
)

const (
	rootsEvery  = time.Minute     // between looks, when no node says that there is something new
	rootsPause  = 2 * time.Second // between looks in any case
	rootsDial   = 5 * time.Second
	rootsAnswer = 10 << 20
)

// trust reads both bundles and the documents that follow from them into m. What
// is wrong is found, and leaves what was good before.
func (k *keeper) trust(m *material, raw [5][]byte, found map[string]error) {
	anchors := k.anchors
	for i, f := range []struct {
		key, path string
		td        spiffeid.TrustDomain
		text      []byte
	}{
		{"identity_bundle", k.cfg.files.identity, k.cfg.identityTD, raw[2]},
		{"grants_bundle", k.cfg.files.grants, k.cfg.grantTD, raw[3]},
	} {
		bundle, err := parseBundle(f.td, f.path, f.text)
		if err != nil {
			found[f.key] = err
			continue
		}
		anchors[i] = bundle
	}
	if anchors[0] == nil || anchors[1] == nil {
		return // at the start, which this ends
	}
	documents, err := trust.ParseAll(raw[4])
	if err == nil {
		err = k.goesBack(anchors, documents)
	}
	if err != nil {
		// A file that cannot be read is no empty list: it may have said that a
		// stolen root is retired.
		found["roots_file"] = fmt.Errorf("%w: %s: %w", ErrMaterial, k.cfg.files.roots, err)
		documents = k.documents
	}
	sets := follow(anchors, documents)
	var bundles [2]*x509bundle.Bundle
	for i := range sets {
		bundles[i] = x509bundle.FromX509Authorities(anchors[i].TrustDomain(), sets[i].Roots())
	}
	if err := apart(bundles[0], bundles[1]); err != nil {
		found["bundles"] = err
		return
	}
	k.anchors, k.documents = anchors, documents
	m.sets, m.identity, m.grants = sets, bundles[0], bundles[1]
}

func follow(anchors [2]*x509bundle.Bundle, documents []trust.Document) (sets [2]trust.Set) {
	for i, bundle := range anchors {
		sets[i], _ = trust.NewSet(bundle.TrustDomain().Name(), bundle.X509Authorities()).Follow(documents)
	}
	return sets
}

// goesBack refuses documents that end before those in force. While an operator's
// bundle stays as it was, one that is gone from the file, or a file put back to
// what it once said, would bring back a root that was retired.
func (k *keeper) goesBack(anchors [2]*x509bundle.Bundle, documents []trust.Document) error {
	cur := k.cur.Load()
	if cur == nil {
		return nil
	}
	for i, set := range follow(anchors, documents) {
		if before := cur.sets[i]; set.Sequence() < before.Sequence() && anchors[i].Equal(k.anchors[i]) {
			return fmt.Errorf("document %d of %s is in force, the file ends with %d", before.Sequence(), set.TrustDomain(), set.Sequence())
		}
	}
	return nil
}

// adopt keeps the documents that follow from the roots in force. It says whether
// there were any, and which trust domains have one that does not follow.
func (k *keeper) adopt(documents []trust.Document) (adopted bool, behind []string, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	kept := slices.Clone(k.documents)
	for _, set := range k.cur.Load().sets {
		_, more, late := set.Adopt(documents)
		kept = append(kept, more...)
		adopted = adopted || len(more) > 0
		if late {
			behind = append(behind, set.TrustDomain())
		}
	}
	if !adopted {
		return false, behind, nil
	}
	text, err := trust.EncodeAll(kept)
	if err != nil {
		return false, behind, err
	}
	// What is not on disk does not count: after a restart it would not have been.
	return true, behind, replaceFile(k.cfg.files.roots, text)
}

// rootsFollower fetches roots documents from control nodes. It trusts none of
// them: a document counts for who signed it, and who withholds one can at most
// leave things as they are.
type rootsFollower struct {
	servers []*url.URL
	keeper  *keeper
	reload  func() error // takes in what was kept
	log     *slog.Logger
	news    chan struct{} // has room for one
	behind  []string      // trust domains, as they were last logged
	trouble *trouble
}

// heard is told how many documents a node knows.
func (f *rootsFollower) heard(documents uint64) {
	if documents <= f.keeper.cur.Load().documents() {
		return
	}
	select {
	case f.news <- struct{}{}:
	default:
	}
}

// run looks every minute, and when a node has more, until ctx ends.
func (f *rootsFollower) run(ctx context.Context) {
	failed := 0 // nodes in a row
	for i := 0; ctx.Err() == nil && len(f.servers) > 0; i++ {
		server := f.servers[i%len(f.servers)]
		switch err := f.look(ctx, server); {
		case ctx.Err() != nil:
			return
		case err != nil:
			err = explain(err)
			f.trouble.set(server.Host + ": " + err.Error())
			if failed++; failed == len(f.servers) { // one that is away is no news
				f.log.Warn("roots documents cannot be fetched from any node", slog.String("server", server.Host), slog.Any("error", err))
			}
		default:
			failed = 0
			f.trouble.set("")
		}
		pause := time.NewTimer(rootsPause)
		select {
		case <-ctx.Done():
		case <-pause.C:
		}
		pause.Stop()
		wait := time.NewTimer(rootsEvery)
		select {
		case <-ctx.Done():
		case <-wait.C:
		case <-f.news:
		}
		wait.Stop()
	}
}

// look asks one node.
func (f *rootsFollower) look(ctx context.Context, server *url.URL) error {
	documents, err := f.fetch(ctx, server)
	if err != nil {
		return err
	}
	adopted, behind, err := f.keeper.adopt(documents)
	if err != nil {
		return err
	}
	if !slices.Equal(behind, f.behind) && len(behind) > 0 {
		f.log.Error("there is a roots document that no root known here has signed: put the new roots into the bundle files",
			slog.String("server", server.Host), slog.Any("trust_domains", behind))
	}
	f.behind = behind
	if adopted {
		return f.reload()
	}
	return nil
}

// fetch reads a node's documents. Its certificate is not looked at: it may be
// signed by the very root that the documents are to introduce.
func (f *rootsFollower) fetch(ctx context.Context, server *url.URL) ([]trust.Document, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*rootsDial)
	defer cancel()
	transport := &http.Transport{
		DialContext: (&net.Dialer{Timeout: rootsDial}).DialContext,
		TLSClientConfig: &tls.Config{
			MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"},
			InsecureSkipVerify:     true, //nolint:gosec // the documents are signed; the server proves nothing by its name
			SessionTicketsDisabled: true,
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				return &f.keeper.cur.Load().cert, nil
			},
		},
	}
	defer transport.CloseIdleConnections()
	target := *server
	target.Path = "/v1/roots"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target.String(), http.NoBody)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	res, err := transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }() // read only
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the node answered %s", res.Status)
	}
	type set struct {
		Documents []string `json:"documents"`
	}
	var answer struct {
		Identity set `json:"identity"`
		Grants   set `json:"grants"`
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, rootsAnswer+1))
	if err == nil && len(body) > rootsAnswer {
		err = errors.New("the answer is too long")
	}
	if err == nil {
		err = json.Unmarshal(body, &answer)
	}
	if err != nil {
		return nil, err
	}
	return trust.ParseAll([]byte(strings.Join(append(answer.Identity.Documents, answer.Grants.Documents...), "\n")))
}
