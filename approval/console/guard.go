package console

import (
	"errors"
	"fmt"
	"log/slog"
	"mime"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"
)

const (
	// maxForm bounds a form's body, maxQuery a query, maxHeader all headers.
	maxForm   = 64 << 10
	maxQuery  = 8 << 10
	maxHeader = 16 << 10

	// pageTime is how long the cluster may take to answer for a page.
	pageTime = 30 * time.Second
)

// Server makes the http.Server that a console is served by. Whoever trickles a
// request in, or reads no answer, holds a connection for no longer than it says.
func (c *Console) Server() *http.Server {
	return &http.Server{
		Handler:           c,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      pageTime + 10*time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(c.log.Handler(), slog.LevelWarn),
	}
}

// guardHeaders go with every answer.
func guardHeaders(h http.Header) {
	// A script that an attacker got into a page would act as the person; a page
	// in a frame would have them click on what they do not see (clickjacking); a
	// base or a form to elsewhere would carry their words there.
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "+
		"form-action 'self'; frame-ancestors 'none'; base-uri 'none'; require-trusted-types-for 'script'")
	h.Set("X-Frame-Options", "DENY")
	// A text that is shown must not be taken for a script or a style.
	h.Set("X-Content-Type-Options", "nosniff")
	// The address says what one is looking at, and of the sign-in page more than that.
	h.Set("Referrer-Policy", "no-referrer")
	// A page of another origin must hold no window of ours, and no part of a page.
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=(), payment=(), usb=()")
	// What was seen by one who may see it must not be left on the disk.
	h.Set("Cache-Control", "no-store")
}

// refusal is what a call is refused with before anything looks at it.
type refusal struct {
	status     int
	what, next string
}

// screen refuses what no page should see.
func (c *Console) screen(r *http.Request) *refusal {
	// DNS rebinding: a page of evil.example has its name point at 127.0.0.1, and
	// is then of one origin with whatever listens there. It cannot change what
	// the browser calls the host.
	if !strings.EqualFold(r.Host, c.host) {
		return &refusal{http.StatusMisdirectedRequest, "This console has another name.", "Open the address that hallpass console has printed."}
	}
	if r.URL.RawPath != "" || r.URL.Path == "" || path.Clean(r.URL.Path) != r.URL.Path {
		return &refusal{http.StatusNotFound, "There is no such page.", "Go back to the queue."}
	}
	if len(r.URL.RawQuery) > maxQuery {
		return &refusal{http.StatusRequestURITooLong, "The address is too long.", "Ask for less."}
	}
	if err := single(r.URL.RawQuery); err != nil {
		return &refusal{http.StatusBadRequest, "The address cannot be read: " + err.Error() + ".", "Go back to the queue."}
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		if r.ContentLength != 0 {
			return &refusal{http.StatusBadRequest, r.Method + " takes no body.", ""}
		}
	case http.MethodPost:
		// Cross-site request forgery: another site's page posts a form of its own
		// here, and the browser adds what it keeps for this host.
		if err := c.origin.Check(r); err != nil {
			return &refusal{http.StatusForbidden, "This came from a page of another site. Nothing was done.", "If you meant to do it, do it here."}
		}
	default:
		return &refusal{http.StatusMethodNotAllowed, "There is no " + r.Method + " here.", ""}
	}
	return nil
}

// single refuses a query in which a field is there twice: two readers could go
// by either.
func single(raw string) error {
	q, err := url.ParseQuery(raw)
	if err != nil {
		return errors.New("it is not a query")
	}
	return once(q)
}

// The fields of a form that may be there several times.
const (
	fieldMany    = "keep"
	fieldBundles = "bundle"
)

func once(fields url.Values) error {
	for name, all := range fields {
		if len(all) > 1 && name != fieldMany && name != fieldBundles {
			return fmt.Errorf("%.40q is in it twice", name)
		}
	}
	return nil
}

// readForm reads the body of a POST into r.PostForm.
func readForm(w http.ResponseWriter, r *http.Request) *refusal {
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || kind != "application/x-www-form-urlencoded" {
		return &refusal{http.StatusUnsupportedMediaType, "That is no form of this console. Nothing was done.", ""}
	}
	if r.URL.RawQuery != "" {
		return &refusal{http.StatusBadRequest, "A form has its fields in its body. Nothing was done.", ""}
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	err = r.ParseForm()
	var big *http.MaxBytesError
	switch {
	case errors.As(err, &big):
		return &refusal{http.StatusRequestEntityTooLarge, "That is too long. Nothing was done.", "Go back, and write less."}
	case err != nil:
		return &refusal{http.StatusBadRequest, "The form did not arrive whole. Nothing was done.", "Go back, and send it again."}
	}
	if err := once(r.PostForm); err != nil {
		return &refusal{http.StatusBadRequest, "The form cannot be read: " + err.Error() + ". Nothing was done.", ""}
	}
	return nil
}

// typed is what was typed into a field, with the line ends of the cluster's texts.
func typed(r *http.Request, field string) string {
	return strings.TrimSpace(strings.ReplaceAll(r.PostForm.Get(field), "\r\n", "\n"))
}

// checkToken refuses a form that was not made by a page of this session: what
// CrossOriginProtection lets through from a program that is no browser, or from
// one too old to say where a form came from.
func checkToken(r *http.Request, s *Session) *refusal {
	if s.Token == "" || !same(r.PostForm.Get(fieldToken), s.Token) {
		return &refusal{http.StatusForbidden, "This form is not of your session. Nothing was done.", "Open the page again, and decide there."}
	}
	return nil
}
