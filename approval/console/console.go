package console

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"html/template"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/grant"
)

//go:embed templates/*.html
var templateFiles embed.FS

//go:embed static
var staticFiles embed.FS

const (
	fieldToken = "csrf"
	fieldKey   = "key"
	fieldHash  = "hash"
)

// Config is what a Console is made of.
type Config struct {
	Sessions Sessions
	// Host is the one name, with its port, under which browsers call.
	Host string
	// Zone is the time zone of what is shown, and of what counts as off-hours.
	Zone   *time.Location
	Logger *slog.Logger
}

// Console serves the pages.
type Console struct {
	sessions Sessions
	host     string
	zone     *time.Location
	log      *slog.Logger
	pages    map[string]*template.Template
	mux      *http.ServeMux
	origin   *http.CrossOriginProtection
	streams  chan struct{} // one place an open event stream
}

// New makes a Console.
func New(cfg Config) (*Console, error) {
	if cfg.Sessions == nil || cfg.Host == "" || cfg.Zone == nil || cfg.Logger == nil {
		return nil, errors.New("console: Config needs Sessions, Host, Zone and Logger")
	}
	c := &Console{
		sessions: cfg.Sessions, host: cfg.Host, zone: cfg.Zone, log: cfg.Logger,
		pages: make(map[string]*template.Template), mux: http.NewServeMux(),
		origin: http.NewCrossOriginProtection(), streams: make(chan struct{}, maxStreams),
	}
	if err := c.parse(); err != nil {
		return nil, fmt.Errorf("console: %w", err)
	}
	static, err := fs.Sub(staticFiles, "static")
	if err != nil {
		return nil, fmt.Errorf("console: %w", err)
	}
	c.routes(http.FileServerFS(static))
	return c, nil
}

// parse reads each page's template together with the frame around it.
func (c *Console) parse() error {
	names, err := fs.Glob(templateFiles, "templates/*.html")
	if err != nil {
		return err
	}
	for _, name := range names {
		if name == "templates/frame.html" {
			continue
		}
		t, err := template.New("frame.html").Funcs(c.funcs()).ParseFS(templateFiles, "templates/frame.html", name)
		if err != nil {
			return err
		}
		c.pages[name[len("templates/"):len(name)-len(".html")]] = t
	}
	return nil
}

func (c *Console) routes(static http.Handler) {
	c.mux.Handle("GET /static/{file}", http.StripPrefix("/static/", static))
	c.mux.HandleFunc("GET /sign-in", c.signIn)
	c.mux.HandleFunc("POST /sign-in", c.signIn)
	c.mux.HandleFunc("POST /sign-out", c.form(c.signOut))
	c.mux.HandleFunc("GET /{$}", c.livePage(c.queue))
	c.mux.HandleFunc("GET "+pathEvents, c.events)
	c.mux.HandleFunc("GET /ask", c.page(c.ask))
	c.mux.HandleFunc("POST /ask", c.form(c.asks))
	c.mux.HandleFunc("GET /requests/{id}", c.livePage(c.request))
	c.mux.HandleFunc("POST /requests/{id}/decide", c.form(c.decide))
	c.mux.HandleFunc("POST /requests/{id}/cancel", c.form(c.cancel))
	c.mux.HandleFunc("POST /requests/{id}/review", c.form(c.closeReview))
	c.mux.HandleFunc("POST /requests/{id}/sign-in", c.form(c.signInAgain))
	c.mux.HandleFunc("GET /grants", c.livePage(c.grants))
	c.mux.HandleFunc("GET /grants/{id}", c.livePage(c.grant))
	c.mux.HandleFunc("POST /grants/{id}/revoke", c.form(c.revoke))
	c.mux.HandleFunc("GET /history", c.page(c.history))
	c.mux.HandleFunc("GET /audit", c.page(c.audit))
	c.mux.HandleFunc("GET /audit/{index}", c.page(c.auditEntry))
	c.mux.HandleFunc("GET /changes", c.page(c.changes))
	c.mux.HandleFunc("GET /changes/{id}", c.page(c.change))
	c.mux.HandleFunc("POST /changes/{id}/decide", c.form(c.decideChange))
	c.mux.HandleFunc("POST /changes/{id}/cancel", c.form(c.cancelChange))
	c.mux.HandleFunc("GET /policy", c.page(c.policy))
	c.mux.HandleFunc("GET /cluster", c.page(c.cluster))
}

// ServeHTTP implements http.Handler.
func (c *Console) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	guardHeaders(w.Header())
	defer c.recover(w, r)
	if no := c.screen(r); no != nil {
		c.refuse(w, r, no)
		return
	}
	if _, pattern := c.mux.Handler(r); pattern == "" {
		c.refuse(w, r, &refusal{http.StatusNotFound, "There is no such page.", "Go back to the queue."})
		return
	}
	c.mux.ServeHTTP(w, r)
}

// recover answers for a page that panicked: the others go on.
func (c *Console) recover(w http.ResponseWriter, r *http.Request) {
	v := recover()
	if v == nil {
		return
	}
	if v == http.ErrAbortHandler { //nolint:errorlint // net/http compares it so
		panic(v)
	}
	c.log.LogAttrs(r.Context(), slog.LevelError, "page failed", slog.String("path", r.URL.Path), slog.Any("panic", v))
	c.refuse(w, r, &refusal{http.StatusInternalServerError, "The console failed.", "Its log says why."})
}

// view is a page to be shown.
type view struct {
	page   string // of templates/
	title  string
	status int // zero means 200
	body   any
}

// frame is what a page's template is given.
type frame struct {
	Title string
	Page  string
	Me    *api.WhoAmI // nil before signing in
	Token string
	After string // the last event that the page knows of; "" for a page that hears of none
	Body  any
}

// visit is one call of a session.
type visit struct {
	*http.Request
	api   API
	me    api.WhoAmI
	token string
	after string // what the page's event stream goes on from; "" for none

	signedIn time.Time // wall clock
}

// page serves a GET of a session.
func (c *Console) page(fn func(v visit) (view, error)) http.HandlerFunc {
	return c.session(func(w http.ResponseWriter, v visit) {
		out, err := fn(v)
		c.answer(v.Context(), w, v, out, err)
	})
}

// livePage is page for one that hears of what happens after it was made.
func (c *Console) livePage(fn func(v visit) (view, error)) http.HandlerFunc {
	return c.session(func(w http.ResponseWriter, v visit) {
		v.after = v.position() // before anything is read: what happens meanwhile is told, too
		out, err := fn(v)
		c.answer(v.Context(), w, v, out, err)
	})
}

// outcome is what a form came to: a place to go to, or a page.
type outcome struct {
	see string
	view
}

// form serves a POST of a session.
func (c *Console) form(fn func(w http.ResponseWriter, v visit) (outcome, error)) http.HandlerFunc {
	inner := c.session(func(w http.ResponseWriter, v visit) {
		out, err := fn(w, v)
		if err == nil && out.see != "" {
			// Only ever a path that is written here: a place that the form could name
			// would send the person, and what they trust, to an attacker's page.
			http.Redirect(w, v.Request, out.see, http.StatusSeeOther)
			return
		}
		c.answer(v.Context(), w, v, out.view, err)
	})
	return func(w http.ResponseWriter, r *http.Request) {
		if no := readForm(w, r); no != nil {
			c.refuse(w, r, no)
			return
		}
		inner(w, r)
	}
}

// session finds whose call it is.
func (c *Console) session(fn func(w http.ResponseWriter, v visit)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		s, err := c.sessions.Session(r)
		if err != nil {
			c.refuse(w, r, &refusal{
				http.StatusUnauthorized, "You are not signed in, or your session is over.", "Run hallpass console, and use the link that it prints.",
			})
			return
		}
		if r.Method == http.MethodPost {
			if no := checkToken(r, s); no != nil {
				c.refuse(w, r, no)
				return
			}
		}
		ctx, cancel := context.WithTimeout(r.Context(), pageTime)
		defer cancel()
		defer context.AfterFunc(s.Live, cancel)() //nolint:contextcheck // the session may end before the call
		v := visit{Request: r.WithContext(ctx), api: s.API, token: s.Token, signedIn: s.SignedIn}
		if v.me, err = s.API.WhoAmI(ctx); err != nil {
			c.answer(ctx, w, v, view{}, err)
			return
		}
		fn(w, v)
	}
}

// answer shows a page, or what went wrong.
func (c *Console) answer(ctx context.Context, w http.ResponseWriter, v visit, out view, err error) {
	if err != nil {
		out = c.problem(ctx, err)
	}
	f := frame{Title: out.title, Page: out.page, Token: v.token, After: v.after, Body: out.body}
	if v.me.ID != "" {
		f.Me = &v.me
	}
	c.render(w, v.Request, out.status, f)
}

func (c *Console) signIn(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPost {
		if no := readForm(w, r); no != nil {
			c.refuse(w, r, no)
			return
		}
	}
	c.sessions.SignIn(w, r, func(p SignInPage) {
		c.render(w, r, p.Status, frame{Title: "Sign in", Page: "sign-in", Body: p})
	})
}

func (c *Console) signOut(w http.ResponseWriter, v visit) (outcome, error) {
	c.sessions.SignOut(w, v.Request)
	return outcome{see: "/sign-in"}, nil
}

// refuse shows why a call was refused, to whoever it is.
func (c *Console) refuse(w http.ResponseWriter, r *http.Request, no *refusal) {
	if no.status == http.StatusMethodNotAllowed {
		w.Header().Set("Allow", "GET, HEAD, POST")
	}
	c.render(w, r, no.status, frame{Title: http.StatusText(no.status), Page: "problem", Body: trouble{What: no.what, Next: no.next}})
}

// render writes a page. It is made whole before a byte of it leaves.
func (c *Console) render(w http.ResponseWriter, r *http.Request, status int, f frame) {
	var out bytes.Buffer
	if err := c.pages[f.Page].Execute(&out, f); err != nil {
		c.log.LogAttrs(r.Context(), slog.LevelError, "page cannot be written", slog.String("page", f.Page), slog.String("error", err.Error()))
		http.Error(w, "The console failed; its log says why.", http.StatusInternalServerError)
		return
	}
	if status == 0 {
		status = http.StatusOK
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(legible(out.Bytes())) // the reader's loss
}

// legible spells out what would not show, or would change how other text shows:
// with a right-to-left override in a reason, a requester could paint over the
// permission that is being approved. It looks at whole pages, so that no text can
// be forgotten, and what it writes is harmless wherever in a page it stands.
func legible(page []byte) []byte {
	if utf8.Valid(page) && !bytes.ContainsFunc(page, hidden) {
		return page
	}
	out := make([]byte, 0, len(page)+64)
	for _, r := range string(page) {
		if hidden(r) || r == utf8.RuneError {
			out = fmt.Appendf(out, "\\u%04x", r)
		} else {
			out = utf8.AppendRune(out, r)
		}
	}
	return out
}

func hidden(r rune) bool { return grant.HiddenInText(r) }

// together calls all functions at once and waits for them.
func together(fns ...func() error) error {
	errs := make([]error, len(fns))
	var wg sync.WaitGroup
	for i, fn := range fns {
		wg.Go(func() { errs[i] = fn() })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// link is a path of the console, with what comes from elsewhere escaped.
func link(parts ...string) string {
	escaped := make([]string, 0, len(parts))
	for _, p := range parts {
		escaped = append(escaped, url.PathEscape(p))
	}
	return "/" + strings.Join(escaped, "/")
}
