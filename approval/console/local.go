package console

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// linkLife is how long a one-time link can be used.
	linkLife = 5 * time.Minute
	// sessionIdle is for how long a session may go unused, sessionLife how long
	// it lasts at most.
	sessionIdle = time.Hour
	sessionLife = 9 * time.Hour

	cookieName = "__Host-hallpass"
)

var (
	// ErrLinkUnused is returned when nobody has used the link in its time.
	ErrLinkUnused = errors.New("nobody used the link in its time")
	// ErrSignedOut is returned when the person has signed out.
	ErrSignedOut = errors.New("signed out")
	// ErrSessionOver is returned when the session went unused, or lasted, for too long.
	ErrSessionOver = errors.New("the session is over")
)

// LocalHost makes the name by which browsers on this machine call a console on a
// loopback port: RANDOM.localhost:PORT, which they take to loopback without
// asking any DNS.
//
// Cookies know no ports. On 127.0.0.1 or localhost, any other server on this
// machine that the browser is led to would be sent the session's cookie along
// with the call, and could act with it. It is not sent to another host, and
// nobody who has not seen the link knows this one.
func LocalHost(port int) string {
	name := "hallpass-" + strings.ToLower(rand.Text()) + ".localhost"
	if port == 80 {
		return name // browsers leave it out
	}
	return name + ":" + strconv.Itoa(port)
}

// LocalConfig is what a Local is made of.
type LocalConfig struct {
	API API
	// Who is whom the API acts as, to be shown before one signs in.
	Who string
	// SignedIn is told of the browser that has used the link, by what it calls
	// itself; nil tells nobody.
	SignedIn func(userAgent string)
	// Again is given the link by which the browser that is signed in signs in once
	// more, until when it can be used, and the path that this is for. It MUST show it
	// where the browser is not.
	Again func(link string, until time.Time, path string)
}

// Local is Sessions for one person on their own machine: one link, used once,
// for one session. Close it.
type Local struct {
	cfg      LocalConfig
	token    string    // of the link
	linkEnds time.Time // wall clock
	live     context.Context
	end      context.CancelCauseFunc

	mu      sync.Mutex
	session *localSession // guarded by mu; nil until the link is used
	lapse   *time.Timer   // guarded by mu: ends the link, then the idle session
	again   *again        // guarded by mu; nil: no link to sign in once more
}

type localSession struct {
	Session
	cookie string
	ends   time.Time // wall clock
	used   time.Time // wall clock
}

// again is a link by which the session's browser signs in once more.
type again struct {
	token string
	made  time.Time // wall clock
	back  string    // the path that it leads to
}

// NewLocal makes a Local whose link can be used from now on.
func NewLocal(cfg LocalConfig) *Local {
	l := &Local{cfg: cfg, token: rand.Text(), linkEnds: wall(linkLife)}
	l.live, l.end = context.WithCancelCause(context.Background())
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lapse = time.AfterFunc(linkLife, func() { l.end(ErrLinkUnused) })
	return l
}

// wall is the time after d by the wall clock: a timer stands still while a
// laptop is asleep, and what should have ended would wake up with it.
func wall(d time.Duration) time.Time { return time.Now().Round(0).Add(d) }

// Link is the one-time link of a console under this host.
func (l *Local) Link(host string) string { return "http://" + host + "/sign-in?token=" + l.token }

// LinkEnds is until when the link can be used.
func (l *Local) LinkEnds() time.Time { return l.linkEnds }

// Over is closed once nobody can use this console any more; Err says why.
func (l *Local) Over() <-chan struct{} { return l.live.Done() }

// Err is ErrLinkUnused, ErrSignedOut or ErrSessionOver, nil while it is in use.
func (l *Local) Err() error { return context.Cause(l.live) }

// Close ends the session.
func (l *Local) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lapse.Stop()
	l.end(ErrSessionOver)
}

// Session implements Sessions.
func (l *Local) Session(r *http.Request) (*Session, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s, now := l.session, time.Now().Round(0)
	if s == nil || l.live.Err() != nil {
		return nil, ErrNoSession
	}
	cookies := r.CookiesNamed(cookieName)
	if len(cookies) != 1 || !same(cookies[0].Value, s.cookie) {
		return nil, ErrNoSession
	}
	if !now.Before(s.ends) || now.Sub(s.used) >= sessionIdle {
		l.end(ErrSessionOver)
		return nil, ErrNoSession
	}
	if r.URL.Path != pathEvents { // a page that is left open comes back for news by itself: that is no use
		s.used = now
		l.lapse.Reset(min(sessionIdle, s.ends.Sub(now)))
	}
	seen := s.Session // as of now: it may sign in again
	return &seen, nil
}

// SignIn implements Sessions. The link is in terminals, in the history of a
// browser, and in whatever looks at links before a person does (a chat's
// preview, a browser's prefetch, a scanner of mail). Were a GET enough, any of
// these would use it up, or be handed the session. So a GET shows a page with a
// button, and only the POST of it, from this very origin, spends the token and is
// given the cookie; it is redirected to an address without the token. One who
// steals the link before it is used has a race to win, and the person then sees
// that it was used: there is one session, and the terminal says so.
func (l *Local) SignIn(w http.ResponseWriter, r *http.Request, show func(SignInPage)) {
	if r.Method != http.MethodPost {
		page := SignInPage{Status: http.StatusOK, Who: l.cfg.Who, Token: r.URL.Query().Get("token")}
		switch {
		case errors.Is(l.Err(), ErrSignedOut):
			page = SignInPage{Status: http.StatusOK, Problem: "You are signed out, and the console has ended.", Next: "Run hallpass console again to come back."}
		case page.Token == "":
			page.Status, page.Problem, page.Next = http.StatusUnauthorized, "You are not signed in.", "Use the link that hallpass console has printed, or run it again."
		}
		show(page)
		return
	}
	back, next := "/", "Stop hallpass console with Ctrl-C, which ends its session, and run it again."
	cookie, err := l.spend(r.PostForm.Get("token"))
	if errors.Is(err, errLinkWrong) {
		if cookie, back, err = l.spendAgain(r); errors.Is(err, errLinkOver) {
			next = "Go back to the request, and ask for another."
		}
	}
	if err != nil {
		show(SignInPage{Status: http.StatusForbidden, Problem: err.Error(), Next: next})
		return
	}
	http.SetCookie(w, &http.Cookie{
		Name: cookieName, Value: cookie, Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteStrictMode,
	})
	http.Redirect(w, r, back, http.StatusSeeOther)
	if l.cfg.SignedIn != nil {
		l.cfg.SignedIn(r.UserAgent())
	}
}

var (
	errLinkWrong     = errors.New("This is not the link of this console.")                                                              //nolint:staticcheck // a sentence on a page
	errLinkSpent     = errors.New("This link has been used. If it was not you who used it, somebody else has the session: end it now.") //nolint:staticcheck // a sentence on a page
	errLinkElsewhere = errors.New("This link is for the browser that is signed in.")                                                    //nolint:staticcheck // a sentence on a page
	errLinkOver      = errors.New("This link was not used in its time.")                                                                //nolint:staticcheck // a sentence on a page
)

// spend makes the one session, for the one who has the link's token first.
func (l *Local) spend(token string) (cookie string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case !same(token, l.token):
		return "", errLinkWrong
	case l.session != nil:
		return "", errLinkSpent
	case l.live.Err() != nil || !time.Now().Round(0).Before(l.linkEnds):
		return "", errLinkOver
	}
	l.session = &localSession{
		Session: Session{API: l.cfg.API, Token: rand.Text(), Live: l.live, SignedIn: wall(0)},
		cookie:  rand.Text(), ends: wall(sessionLife), used: wall(0),
	}
	l.lapse.Stop()
	l.lapse = time.AfterFunc(sessionIdle, func() { l.end(ErrSessionOver) })
	return l.session.cookie, nil
}

// againLife is how long a link to sign in once more can be used.
const againLife = 2 * time.Minute

// SignInAgain implements Sessions. Whoever took the browser over has its cookie and
// its pages, and not the terminal, which is where the link is shown.
func (l *Local) SignInAgain(r *http.Request, back string) string {
	if a := l.newAgain(back); a != nil && l.cfg.Again != nil {
		l.cfg.Again("http://"+r.Host+"/sign-in?token="+a.token, a.made.Add(againLife), back)
	}
	return "Where hallpass console runs, it has printed a link. Open it here, in this browser, within two minutes."
}

// newAgain makes a link, or nil while the one before can be used.
func (l *Local) newAgain(back string) *again {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now().Round(0)
	if l.again != nil && now.Sub(l.again.made) < againLife {
		return nil // whoever has the browser could else make each link worthless before it is opened, and fill the terminal
	}
	l.again = &again{token: rand.Text(), made: now, back: back}
	return l.again
}

// spendAgain has the session be as new. The link alone is not enough: it is for the
// browser that has the session, which gets another cookie.
func (l *Local) spendAgain(r *http.Request) (cookie, back string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s, a, cookies := l.session, l.again, r.CookiesNamed(cookieName)
	switch {
	case s == nil || l.live.Err() != nil || a == nil || !same(r.PostForm.Get("token"), a.token):
		return "", "", errLinkWrong
	case time.Now().Round(0).Sub(a.made) >= againLife:
		return "", "", errLinkOver
	case len(cookies) != 1 || !same(cookies[0].Value, s.cookie):
		return "", "", errLinkElsewhere
	}
	l.again = nil
	s.cookie, s.SignedIn = rand.Text(), wall(0)
	return s.cookie, a.back, nil
}

// SignOut implements Sessions.
func (l *Local) SignOut(w http.ResponseWriter, _ *http.Request) {
	http.SetCookie(w, &http.Cookie{Name: cookieName, Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteStrictMode, MaxAge: -1})
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lapse.Stop()
	l.end(ErrSignedOut)
}

// same compares secrets, and takes as long whatever they have in common.
func same(a, b string) bool {
	x, y := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
	return subtle.ConstantTimeCompare(x[:], y[:]) == 1
}
