package notify

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"time"
)

const (
	// maxAnswer is how much of an answer is read.
	maxAnswer = 64 << 10
	// maxRetryAfter bounds what a receiver may ask for: one that says "next year" would
	// have its messages die unsent.
	maxRetryAfter = time.Hour
)

// errAddress is returned for a URL that is not one of a target.
var errAddress = errors.New("want an https URL without a user or a fragment; http is for loopback addresses only")

// checkURL refuses what is no target's URL. Without TLS it may be on this machine only:
// who is on the way could read what is sent, and answer in the receiver's place.
func checkURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.User != nil || u.Fragment != "" {
		return nil, errAddress // and not the text, which may be a secret
	}
	ip, err := netip.ParseAddr(u.Hostname())
	if u.Scheme != "https" && (u.Scheme != "http" || err != nil || !ip.IsLoopback()) {
		return nil, errAddress
	}
	return u, nil
}

// errCutOff is returned for an answer with a status 2xx that does not come to its end.
var errCutOff = errors.New("the answer was cut off")

// poster sends one target's messages over HTTP.
type poster struct {
	client http.Client
	now    func() time.Time
}

func newPoster(roots *x509.CertPool, now func() time.Time) *poster {
	return &poster{now: now, client: http.Client{
		Transport: &http.Transport{
			TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
			ForceAttemptHTTP2:      true,
			MaxResponseHeaderBytes: 16 << 10,
			MaxConnsPerHost:        workers,
			MaxIdleConnsPerHost:    workers,
			IdleConnTimeout:        time.Minute,
		},
		// Whom a message goes to is for the configuration to say: a receiver that redirects
		// would have the node send it anywhere, and into its own network too.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// post sends a body. Every status but 2xx is a *Failure; what is answered besides is thrown away.
func (p *poster) post(ctx context.Context, where string, header http.Header, body []byte) error {
	_, err := p.exchange(ctx, where, header, body)
	if errors.Is(err, errCutOff) {
		return nil // its status says whether it has the message
	}
	return err
}

// exchange sends a body and returns what was answered, one byte more than maxAnswer at the most: as far as a connection is kept by
// reading it. Every status but 2xx is a *Failure.
func (p *poster) exchange(ctx context.Context, where string, header http.Header, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, where, bytes.NewReader(body))
	if err != nil {
		return nil, &Failure{Cause: errAddress.Error(), Permanent: true}
	}
	maps.Copy(req.Header, header)
	req.Header.Set("User-Agent", "hallpass")
	res, err := p.client.Do(req)
	if err != nil {
		return nil, failed(err)
	}
	defer func() { _ = res.Body.Close() }()
	answer, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	if res.StatusCode >= 200 && res.StatusCode <= 299 {
		if err != nil {
			return nil, errCutOff
		}
		return answer, nil
	}
	f := &Failure{Cause: "answered " + strconv.Itoa(res.StatusCode) + " " + http.StatusText(res.StatusCode), Gone: res.StatusCode == http.StatusGone}
	if res.StatusCode >= 300 && res.StatusCode <= 399 {
		f.Cause += ": redirects are not followed"
	}
	f.After = p.retryAfter(res.Header.Get("Retry-After"))
	return nil, f
}

// retryAfter reads a Retry-After (RFC 9110 §10.2.3), of seconds or a date; 0 for none.
func (p *poster) retryAfter(text string) time.Duration {
	var d time.Duration
	if n, err := strconv.Atoi(text); err == nil {
		d = time.Duration(min(max(n, 0), int(maxRetryAfter/time.Second))) * time.Second
	} else if at, err := http.ParseTime(text); err == nil {
		d = at.Sub(p.now())
	}
	return min(max(d, 0), maxRetryAfter)
}
