package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/approval/console"
	"github.com/hallpass/hallpass/internal/demo"
)

// A busy morning: how many decide, what waits for them, and what they do.
const (
	approvers     = 100
	waiting       = 10_000
	perRequester  = 100 // requests that one identity may have pending
	morning       = 30 * time.Second
	pageEvery     = 5 * time.Second        // each approver opens one, on the average
	arrivalsEvery = 500 * time.Millisecond // a new request
	allOpen       = 3 * time.Second        // until every console is open: they are opened in one moment here
)

// benchConsole has every approver open a console on requests that wait by the thousand, turn pages,
// and hear of what is new.
func benchConsole(ctx context.Context, r *report) error {
	if r.part != "" {
		return nil
	}
	stage, err := demo.NewStage(demo.Options{Binary: r.binary, Out: r.log, Unpaced: true, Seed: morningSeed()})
	if err != nil {
		return err
	}
	defer stage.Close()
	if err := stage.StartControl(ctx); err != nil {
		return err
	}
	m := &morningRun{r: r, stage: stage, heard: make(map[string][]time.Time), asked: make(map[string]time.Time)}
	begin := time.Now()
	if err := m.fill(ctx); err != nil {
		return err
	}
	r.note("%d requests wait for %d approvers after %.0f s", waiting, approvers, time.Since(begin).Seconds())
	return m.run(ctx)
}

func approver(i int) string  { return fmt.Sprintf("approver%d", i) }
func requester(i int) string { return fmt.Sprintf("requester%d", i) }

// morningSeed is who is who: any one of the approvers decides.
func morningSeed() string {
	people := append(names(approvers, approver), names(waiting/perRequester+1, requester)...)
	var b strings.Builder
	b.WriteString("persons:\n")
	for _, name := range append([]string{"alice", "bob", "carol", "dana"}, people...) {
		fmt.Fprintf(&b, "  - {name: %s, ids: [%q]}\n", name, "spiffe://acme.test/user/"+name)
	}
	fmt.Fprintf(&b, "groups:\n  - {name: approvers, members: [%s]}\n  - {name: requesters, members: [%s]}\n",
		strings.Join(people[:approvers], ", "), strings.Join(people[approvers:], ", "))
	b.WriteString(`policy: |
  version: 1
  rules:
    - name: payments-read
      service: payments
      requesters: [group:requesters]
      permissions: ["GET,HEAD /accounts/**"]
      require: [{group: approvers, approvals: 1}]
      max_duration: 1h
`)
	return b.String()
}

func names(n int, name func(int) string) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = name(i)
	}
	return all
}

// morningRun is a run of benchConsole.
type morningRun struct {
	r     *report
	stage *demo.Stage

	mu    sync.Mutex // owns what follows
	pages []float64  // ms
	heard map[string][]time.Time
	asked map[string]time.Time
	ids   []string // some that wait
}

// client is one of a person whose identity is issued now.
func (m *morningRun) client(ctx context.Context, name string) (*api.Client, error) {
	root, dir := filepath.Dir(m.stage.Manifest()), filepath.Join(m.r.dir, "people", name)
	out, err := exec.CommandContext(ctx, m.r.binary, "identity", "issue", "spiffe://acme.test/user/"+name, "--root", root, "--out", dir).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("identity of %s: %w: %.300s", name, err, out)
	}
	return api.NewClient(api.ClientConfig{Servers: m.stage.Servers(), Identity: dir, Timeout: 20 * time.Second, RetryFor: 20 * time.Second})
}

// fill asks for what waits, each requester for as much as one may.
func (m *morningRun) fill(ctx context.Context) error {
	for i := range waiting / perRequester {
		c, err := m.client(ctx, requester(i))
		if err != nil {
			return err
		}
		err = m.ask(ctx, c, perRequester)
		c.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// ask makes n requests, several at a time.
func (m *morningRun) ask(ctx context.Context, c *api.Client, n int) error {
	const lanes = 10
	errs := make([]error, lanes)
	var wg sync.WaitGroup
	for lane := range lanes {
		wg.Go(func() {
			for i := lane; i < n && errs[lane] == nil; i += lanes {
				var made api.Request
				made, errs[lane] = c.CreateRequest(ctx, api.RequestInput{
					Service: "payments", Permissions: []string{fmt.Sprintf("GET /accounts/%d/**", rand.IntN(1e6))},
					Reason: fmt.Sprintf("ticket %d", rand.IntN(1e6)), Duration: api.Duration(30 * time.Minute),
				})
				m.mu.Lock()
				m.ids = append(m.ids, made.ID)
				m.mu.Unlock()
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// run is the morning itself.
func (m *morningRun) run(ctx context.Context) error {
	var all []*consoleUser
	defer func() {
		for _, u := range all {
			u.close()
		}
	}()
	for i := range approvers {
		u, err := m.signIn(ctx, approver(i))
		if err != nil {
			return fmt.Errorf("%s: %w", approver(i), err)
		}
		all = append(all, u)
	}
	late, err := m.client(ctx, requester(waiting/perRequester))
	if err != nil {
		return err
	}
	defer late.Close()
	timed, cancel := context.WithTimeout(ctx, morning)
	defer cancel()
	var wg sync.WaitGroup
	errs := make([]error, 2*len(all)+1)
	for i, u := range all {
		wg.Go(func() { errs[2*i] = m.listen(timed, u) })
		wg.Go(func() { errs[2*i+1] = m.turnPages(timed, u) })
	}
	wg.Go(func() { errs[2*len(all)] = m.arrive(timed, late) })
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return m.print()
}

func (m *morningRun) print() error {
	var screen []float64
	missed := 0
	for id, at := range m.asked {
		missed += approvers - len(m.heard[id])
		for _, h := range m.heard[id] {
			screen = append(screen, float64(h.Sub(at).Microseconds())/1000)
		}
	}
	if len(m.pages) == 0 || len(screen) == 0 {
		return fmt.Errorf("%d pages and %d events were seen", len(m.pages), len(screen))
	}
	m.r.note("%d pages, p50 %.1f ms; %d new requests on %d screens, p50 %.1f ms, %d not within the time", len(m.pages), median(m.pages), len(m.asked), approvers, median(screen), missed)
	m.r.figure("console.page.p99_ms", quantile(m.pages, 0.99), "ms")
	m.r.figure("console.event.p99_ms", quantile(screen, 0.99), "ms")
	return nil
}

// consoleUser is an approver with a console of their own, as on a machine of their own.
type consoleUser struct {
	api    *api.Client
	local  *console.Local
	server *http.Server
	served chan struct{} // closed when it is
	http   *http.Client
	host   string
	at     string // address
	cookie string
}

func (m *morningRun) signIn(ctx context.Context, name string) (_ *consoleUser, err error) {
	u := &consoleUser{served: make(chan struct{}), http: &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
	if u.api, err = m.client(ctx, name); err != nil {
		return nil, err
	}
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		u.api.Close()
		return nil, err
	}
	u.at, u.host = ln.Addr().String(), console.LocalHost(ln.Addr().(*net.TCPAddr).Port) //nolint:forcetypeassert // of tcp
	u.local = console.NewLocal(console.LocalConfig{API: u.api, Who: name})
	pages, err := console.New(console.Config{Sessions: u.local, Host: u.host, Zone: time.UTC, Logger: slog.New(slog.DiscardHandler)}) //nolint:contextcheck // each page has that of its call
	if err != nil {
		u.api.Close()
		return nil, errors.Join(err, ln.Close())
	}
	u.server = pages.Server()
	go func() {
		defer close(u.served)
		_ = u.server.Serve(ln) // until it is closed
	}()
	link, err := url.Parse(u.local.Link(u.host))
	if err != nil {
		return nil, err
	}
	resp, err := u.call(ctx, http.MethodPost, "/sign-in", strings.NewReader(url.Values{"token": {link.Query().Get("token")}}.Encode()))
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }() // says nothing
	if len(resp.Cookies()) != 1 {
		return nil, fmt.Errorf("no session: %s", resp.Status)
	}
	u.cookie = resp.Cookies()[0].Name + "=" + resp.Cookies()[0].Value
	return u, nil
}

func (u *consoleUser) close() {
	_ = u.server.Close() // nobody is left
	<-u.served
	u.local.Close()
	u.http.CloseIdleConnections()
	u.api.Close()
}

func (u *consoleUser) call(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+u.at+path, body)
	if err != nil {
		return nil, err
	}
	req.Host = u.host
	req.Header.Set("Cookie", u.cookie)
	if method == http.MethodPost {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.Header.Set("Sec-Fetch-Site", "same-origin")
	}
	return u.http.Do(req)
}

// page gets all of a page, and says how long that took.
func (u *consoleUser) page(ctx context.Context, path string) ([]byte, time.Duration, error) {
	begin := time.Now()
	resp, err := u.call(ctx, http.MethodGet, path, http.NoBody)
	if err != nil {
		return nil, 0, err
	}
	defer func() { _ = resp.Body.Close() }() // has been read
	text, err := io.ReadAll(resp.Body)
	took := time.Since(begin)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", path, resp.Status)
	}
	return text, took, err
}

// turnPages opens the queue and requests, in turn, at the pace of a person.
func (m *morningRun) turnPages(ctx context.Context, u *consoleUser) error {
	if err := sleep(ctx, allOpen); err != nil {
		return err
	}
	for turn := 0; ; turn++ {
		if err := sleep(ctx, rand.N(2*pageEvery)); err != nil {
			return nil //nolint:nilerr // the morning is over
		}
		path := "/"
		if turn%2 == 1 {
			m.mu.Lock()
			path = "/requests/" + m.ids[rand.IntN(len(m.ids))]
			m.mu.Unlock()
		}
		_, took, err := u.page(ctx, path)
		switch {
		case ctx.Err() != nil:
			return nil //nolint:nilerr // the morning is over
		case err != nil:
			return err
		}
		m.mu.Lock()
		m.pages = append(m.pages, float64(took.Microseconds())/1000)
		m.mu.Unlock()
	}
}

// listen hears of what is new, from the queue's page on.
func (m *morningRun) listen(ctx context.Context, u *consoleUser) error {
	text, _, err := u.page(ctx, "/")
	if err != nil {
		return err
	}
	events := regexp.MustCompile(`data-events="([^"]*)"`).FindSubmatch(text)
	if events == nil {
		return errors.New("the queue hears of nothing")
	}
	resp, err := u.call(ctx, http.MethodGet, string(events[1]), http.NoBody)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }() // ends with the morning
	lines := bufio.NewScanner(resp.Body)
	isNew := false
	for lines.Scan() {
		kind, ok := bytes.CutPrefix(lines.Bytes(), []byte("event: "))
		if ok {
			isNew = string(kind) == "request"
			continue
		}
		id := regexp.MustCompile(`"id":"([^"]*)"`).FindSubmatch(lines.Bytes())
		if !isNew || id == nil {
			continue
		}
		now := time.Now()
		m.mu.Lock()
		m.heard[string(id[1])] = append(m.heard[string(id[1])], now)
		m.mu.Unlock()
	}
	if ctx.Err() == nil {
		return fmt.Errorf("the events have ended: %w", errors.Join(lines.Err(), io.ErrUnexpectedEOF))
	}
	return nil
}

// arrive asks for something new every now and then, until there is too little time left to hear of it.
func (m *morningRun) arrive(ctx context.Context, c *api.Client) error {
	if err := sleep(ctx, allOpen); err != nil {
		return err
	}
	end := time.Now().Add(morning - 8*time.Second)
	for time.Now().Before(end) {
		at := time.Now()
		made, err := c.CreateRequest(ctx, api.RequestInput{
			Service: "payments", Permissions: []string{"GET /accounts/1"}, Reason: "a new one", Duration: api.Duration(30 * time.Minute),
		})
		if err != nil {
			return err
		}
		m.mu.Lock()
		m.asked[made.ID] = at
		m.mu.Unlock()
		if err := sleep(ctx, arrivalsEvery); err != nil {
			return err
		}
	}
	return nil
}
