package main

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hallpass/hallpass/approval/notify"
	"github.com/hallpass/hallpass/control"
	"github.com/hallpass/hallpass/internal/config"
)

// notifySettings say who is told what happens. They should be the same on all nodes:
// those of the node that leads count.
type notifySettings struct {
	Console string         `yaml:"console" doc:"where people have their console, for links in messages: http://127.0.0.1:PORT or an https URL (default no links)"`
	Targets []notifyTarget `yaml:"targets"`
}

// notifyTarget is one receiver. Which of the keys a kind takes is in docs/notify.md.
type notifyTarget struct {
	Name        string   `yaml:"name"`
	Kind        string   `yaml:"kind"`
	Events      []string `yaml:"events"`
	OnlyNamed   bool     `yaml:"only_named"`
	URL         string   `yaml:"url"`
	SecretFiles []string `yaml:"secret_files"`
	CAFile      string   `yaml:"ca_file"`

	Server       string   `yaml:"server"`
	TLS          string   `yaml:"tls"`
	From         string   `yaml:"from"`
	To           []string `yaml:"to"`
	User         string   `yaml:"user"`
	PasswordFile string   `yaml:"password_file"`

	TokenFile string `yaml:"token_file"`
	Channel   string `yaml:"channel"`
	URLFile   string `yaml:"url_file"`
	KeyFile   string `yaml:"key_file"`

	Timeout     waitSpan `yaml:"timeout"`
	GiveUpAfter waitSpan `yaml:"give_up_after"`
}

// waitSpan is a duration whose bounds are its reader's to check.
type waitSpan time.Duration

var errWaitSpan = errors.New("a duration such as 10s or 24h, more than none")

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *waitSpan) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil || v <= 0 {
		return errWaitSpan
	}
	*d = waitSpan(v)
	return nil
}

// maxSecretFile is how long a file with a secret may be.
const maxSecretFile = 64 << 10

// files are the paths that a target names.
func (t *notifyTarget) files() []*string {
	all := []*string{&t.CAFile, &t.PasswordFile, &t.TokenFile, &t.URLFile, &t.KeyFile}
	for i := range t.SecretFiles {
		all = append(all, &t.SecretFiles[i])
	}
	return all
}

// from takes paths from the folder of the configuration file.
func (n notifySettings) from(dir string) {
	for i := range n.Targets {
		for _, p := range n.Targets[i].files() {
			if *p != "" && !filepath.IsAbs(*p) {
				*p = filepath.Join(dir, *p)
			}
		}
	}
}

// check says what cannot be meant, without a look into the files that are named.
func (n notifySettings) check(at config.Places) error {
	var errs []error
	if n.Console != "" {
		if u, err := url.Parse(n.Console); err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Scheme != "https" && u.Scheme != "http" {
			errs = append(errs, at.Mistake("notify.console", "want the URL of a console, such as http://127.0.0.1:8700"))
		}
	}
	seen := map[string]bool{}
	for i, t := range n.Targets {
		key := fmt.Sprintf("notify.targets[%d]", i)
		if seen[t.Name] {
			errs = append(errs, at.Mistake(key+".name", fmt.Sprintf("%q: another target has that name", t.Name)))
		}
		seen[t.Name] = true
		_, err := t.build(false)
		var f *notify.FieldError
		switch {
		case errors.As(err, &f):
			errs = append(errs, at.Mistake(key+"."+f.Field, f.Text))
		case err != nil:
			errs = append(errs, at.Mistake(key, err.Error()))
		}
	}
	return errors.Join(errs...)
}

// control reads the files and gives what a node is told.
func (n notifySettings) control() (control.Notify, error) {
	out := control.Notify{Console: n.Console}
	for _, t := range n.Targets {
		target, err := t.build(true)
		if err != nil {
			return out, fmt.Errorf("%w: notify target %s: %w", config.ErrConfig, t.Name, err)
		}
		out.Targets = append(out.Targets, target)
	}
	return out, nil
}

// build makes a target. Unless open, the files that it names are not looked at, and
// something that would do stands in for each.
func (t notifyTarget) build(open bool) (*notify.Target, error) {
	c := notify.TargetConfig{
		Name: t.Name, Kind: notify.Kind(t.Kind), Events: t.Events, OnlyNamed: t.OnlyNamed, URL: t.URL,
		Timeout: time.Duration(t.Timeout), GiveUp: time.Duration(t.GiveUpAfter),
	}
	var err error
	if c.Keys, err = signingKeys(t.SecretFiles, open); err != nil {
		return nil, err
	}
	if c.Mail, err = t.mail(open); err != nil {
		return nil, err
	}
	if c.Channel, err = t.Channel, t.secret(open, &c); err != nil {
		return nil, err
	}
	if err := t.unused(); err != nil {
		return nil, err
	}
	if c.Roots, err = rootsOf(t.CAFile, open); err != nil {
		return nil, err
	}
	return notify.NewTarget(c, time.Now)
}

// mail is what a target of mail needs besides.
func (t notifyTarget) mail(open bool) (m notify.Mail, err error) {
	m = notify.Mail{Server: t.Server, TLS: notify.MailTLS(t.TLS), From: t.From, To: t.To, User: t.User}
	if t.PasswordFile != "" {
		if m.Password, err = secretOf(t.PasswordFile, open, "stands in"); err != nil {
			return m, &notify.FieldError{Field: "password_file", Text: err.Error()}
		}
	}
	return m, nil
}

// secret reads the one secret that some kinds have.
func (t notifyTarget) secret(open bool, c *notify.TargetConfig) error {
	for _, f := range []struct {
		kind                notify.Kind
		key, path, standsIn string
	}{
		{notify.KindSlack, "token_file", t.TokenFile, "xoxb-"},
		{notify.KindTeams, "url_file", t.URLFile, "https://stands.in/"},
		{notify.KindPagerDuty, "key_file", t.KeyFile, strings.Repeat("0", 32)},
	} {
		if c.Kind != f.kind || f.path == "" {
			continue
		}
		var err error
		if c.Secret, err = secretOf(f.path, open, f.standsIn); err != nil {
			return &notify.FieldError{Field: f.key, Text: err.Error()}
		}
	}
	return nil
}

// unused refuses keys that the target's kind does not take: who wrote one believes that
// it counts.
func (t notifyTarget) unused() error {
	taken := map[notify.Kind][]string{
		notify.KindWebhook:   {"url", "secret_files", "ca_file"},
		notify.KindMail:      {"server", "tls", "from", "to", "user", "password_file", "ca_file"},
		notify.KindSlack:     {"token_file", "channel", "url", "ca_file"},
		notify.KindTeams:     {"url_file", "ca_file"},
		notify.KindPagerDuty: {"key_file", "url", "ca_file"},
	}[notify.Kind(t.Kind)]
	if taken == nil {
		return nil // that there is no such kind is told elsewhere
	}
	for _, f := range []struct {
		key   string
		given bool
	}{
		{"url", t.URL != ""},
		{"secret_files", len(t.SecretFiles) > 0},
		{"ca_file", t.CAFile != ""},
		{"server", t.Server != ""},
		{"tls", t.TLS != ""},
		{"from", t.From != ""},
		{"to", len(t.To) > 0},
		{"user", t.User != ""},
		{"password_file", t.PasswordFile != ""},
		{"token_file", t.TokenFile != ""},
		{"channel", t.Channel != ""},
		{"url_file", t.URLFile != ""},
		{"key_file", t.KeyFile != ""},
	} {
		if f.given && !slices.Contains(taken, f.key) {
			return &notify.FieldError{Field: f.key, Text: fmt.Sprintf("is nothing that a target of kind %s takes; it takes %s", t.Kind, strings.Join(taken, ", "))}
		}
	}
	return nil
}

// signingKeys are those of secret_files.
func signingKeys(files []string, open bool) (keys []notify.SigningKey, err error) {
	for _, path := range files {
		text, err := secretOf(path, open, "whsec_"+strings.Repeat("A", 32))
		if err != nil {
			return nil, &notify.FieldError{Field: "secret_files", Text: err.Error()}
		}
		k, err := notify.ParseSigningKey(text)
		if err != nil {
			return nil, &notify.FieldError{Field: "secret_files", Text: path + ": " + err.Error()}
		}
		keys = append(keys, k)
	}
	return keys, nil
}

// rootsOf are those of ca_file, nil for the system's.
func rootsOf(file string, open bool) (*x509.CertPool, error) {
	if file == "" || !open {
		return nil, nil //nolint:nilnil // the system's
	}
	text, err := os.ReadFile(file) // it is public
	pool := x509.NewCertPool()
	if err == nil && !pool.AppendCertsFromPEM(text) {
		err = fmt.Errorf("%s: no certificate in PEM", file)
	}
	if err != nil {
		return nil, &notify.FieldError{Field: "ca_file", Text: err.Error()}
	}
	return pool, nil
}

// secretOf is what is in a file that only its owner may access, or what stands in for it
// while it is not to be opened.
func secretOf(path string, open bool, standIn string) (string, error) {
	if !open {
		return standIn, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }() // it was read
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("%s: mode %s: want a file that only its owner may access; chmod 600 it", path, info.Mode())
	}
	text, err := io.ReadAll(io.LimitReader(f, maxSecretFile))
	if err != nil {
		return "", err
	}
	if out := strings.TrimSpace(string(text)); out != "" {
		return out, nil
	}
	return "", fmt.Errorf("%s: is empty", path)
}
