package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
)

// CallError is why a call was not carried: nothing of it has reached the service.
type CallError struct {
	// Code is one word for machines, as in a problem document.
	Code string
	// Detail says it in words that help and give nothing away.
	Detail string
	// Permission is what the call needs, in text form, where that is missing; else "".
	Permission string

	cause error
}

// Error implements error.
func (e *CallError) Error() string { return e.Code + ": " + e.Detail }

// Unwrap is the error beneath, for logs.
func (e *CallError) Unwrap() error { return e.cause }

// Begin keeps connections to the proxy for whoever makes calls in this process, without a
// listener that other programs could use. end, which may be called again, waits for them to close.
func (c *Connector) Begin() (end func()) {
	c.links.enter()
	return sync.OnceFunc(func() {
		c.rest()
		c.links.leave()
	})
}

// Call sends one request, between Begin and its end, as if a program had sent it to a listener.
// target is a path with its query, as it goes out, byte for byte. Redirections are not followed.
// Whatever keeps it from being sent is a *CallError.
func (c *Connector) Call(ctx context.Context, method, target string, header http.Header, body []byte) (*http.Response, error) {
	if why := c.notCallable(method, target, header); why != "" {
		return nil, &CallError{Code: "bad_call", Detail: why}
	}
	r := &http.Request{
		Method: method, URL: &url.URL{Scheme: "https", Host: c.address, Opaque: target}, Host: c.host,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: header.Clone(), Body: http.NoBody,
	}
	if r.Header == nil {
		r.Header = make(http.Header)
	}
	if len(body) > 0 {
		with, err := http.NewRequestWithContext(ctx, http.MethodPost, "/", bytes.NewReader(body))
		if err != nil {
			return nil, err
		}
		r.Body, r.ContentLength, r.GetBody = with.Body, with.ContentLength, with.GetBody
	}
	res, err := c.RoundTrip(r.WithContext(ctx))
	if err == nil {
		return res, nil
	}
	no := &CallError{cause: err}
	if refused, ok := errors.AsType[*notGranted](err); ok {
		no.Permission = refused.problem.Permission
	}
	no.Code, no.Detail = connectTrouble(err)
	return nil, no
}

// notCallable says why a request must not go out, or "".
func (c *Connector) notCallable(method, target string, header http.Header) string {
	switch {
	case method == http.MethodConnect:
		// To a carrier it opens a stream, or renews: whoever chooses the method would speak for
		// the connector itself, past what the permission says of paths.
		return "CONNECT is not for calls"
	case !strings.HasPrefix(target, "/"), strings.HasPrefix(target, "//"):
		// An address of another host, which something behind the proxy might follow.
		return fmt.Sprintf("%.100q is no path of %s: a path begins with one slash", target, c.service)
	case header.Get("Upgrade") != "":
		// What follows an upgrade is bytes that nobody reads as requests.
		return "a call cannot change the protocol"
	}
	return ""
}
