package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"
)

const (
	tellDial      = 5 * time.Second
	tellPatience  = 30 * time.Second
	maxTellAnswer = 64 << 10
)

// tell posts something to a control node, over a connection of its own, and returns
// the status of the answer and its text.
func tell(ctx context.Context, conf *tls.Config, server *url.URL, path string, what any) (status int, answer []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, tellPatience)
	defer cancel()
	body, err := json.Marshal(what)
	if err != nil {
		return 0, nil, err
	}
	target := *server
	target.Path = path
	transport := &http.Transport{DialContext: (&net.Dialer{Timeout: tellDial}).DialContext, TLSClientConfig: conf}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, target.String(), bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := transport.RoundTrip(req)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = res.Body.Close() }() // read only
	answer, err = io.ReadAll(io.LimitReader(res.Body, maxTellAnswer))
	return res.StatusCode, answer, err
}

// taken is nil for the status of an answer to what was taken.
func taken(status int) error {
	if status != http.StatusOK {
		return fmt.Errorf("the node answered %d %s", status, http.StatusText(status))
	}
	return nil
}
