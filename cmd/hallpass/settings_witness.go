package main

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"time"

	"github.com/hallpass/hallpass/control"
	"github.com/hallpass/hallpass/internal/config"
)

// witnesses are where the audit log's head is published.
type witnesses struct {
	Every      span         `yaml:"every" doc:"how often the audit log's head is published at the most (default 1m)"`
	Files      []string     `yaml:"files" doc:"histories of the log's heads, which are only added to"`
	Webhooks   []webhookURL `yaml:"webhooks" doc:"https URLs that are sent the log's newest head"`
	SecretFile string       `yaml:"secret_file" doc:"file with the secret of the webhooks, whsec_ and base64"`
}

// check says what does not go together.
func (w witnesses) check() error {
	var errs []error
	if len(w.Webhooks) > 0 && w.SecretFile == "" {
		errs = append(errs, fmt.Errorf("%w: witness.secret_file is missing: by it the webhooks know who sends", config.ErrConfig))
	}
	for i, file := range w.Files {
		if file == "" || slices.Contains(w.Files[:i], file) {
			errs = append(errs, fmt.Errorf("%w: witness.files: %q: want each file once", config.ErrConfig, file))
		}
	}
	return errors.Join(errs...)
}

// control reads the secret and gives what a node is told.
func (w witnesses) control() (control.Witness, error) {
	out := control.Witness{Every: time.Duration(w.Every), Files: w.Files}
	for _, u := range w.Webhooks {
		out.Webhooks = append(out.Webhooks, string(u))
	}
	if w.SecretFile == "" {
		return out, nil
	}
	var err error
	if out.Secret, err = control.LoadWebhookSecret(w.SecretFile); err != nil {
		return out, fmt.Errorf("%w: witness.secret_file: %w", config.ErrConfig, err)
	}
	return out, nil
}

// webhookURL is where a webhook is. Without TLS it may be on this machine only:
// who is on the way could keep heads from it and answer in its place.
type webhookURL string

var errWebhook = errors.New("an https URL without a user, or an http one on loopback")

// UnmarshalText implements encoding.TextUnmarshaler.
func (w *webhookURL) UnmarshalText(text []byte) error {
	u, err := url.Parse(string(text))
	if err != nil || u.Host == "" || u.User != nil || u.Fragment != "" {
		return errWebhook
	}
	ip, err := netip.ParseAddr(u.Hostname())
	if u.Scheme != "https" && (u.Scheme != "http" || err != nil || !ip.IsLoopback()) {
		return errWebhook
	}
	*w = webhookURL(text)
	return nil
}
