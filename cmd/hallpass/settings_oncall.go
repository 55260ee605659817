package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/hallpass/hallpass/approval/notify"
	"github.com/hallpass/hallpass/internal/config"
)

// onCallSettings say whom to ask who is on call, in groups whose members take turns as a resolver says. They should be the same on
// all nodes: those of the node that leads count.
type onCallSettings struct {
	Resolvers []resolverSettings `yaml:"resolvers"`
}

// resolverSettings are one resolver, of one group.
type resolverSettings struct {
	Group       string   `yaml:"group"`
	URL         string   `yaml:"url"`
	SecretFiles []string `yaml:"secret_files"`
	CAFile      string   `yaml:"ca_file"`
	Every       waitSpan `yaml:"every"`
}

// from takes paths from the folder of the configuration file.
func (o onCallSettings) from(dir string) {
	for i := range o.Resolvers {
		r := &o.Resolvers[i]
		paths := []*string{&r.CAFile}
		for j := range r.SecretFiles {
			paths = append(paths, &r.SecretFiles[j])
		}
		for _, p := range paths {
			if *p != "" && !filepath.IsAbs(*p) {
				*p = filepath.Join(dir, *p)
			}
		}
	}
}

// check says what cannot be meant, without a look into the files that are named.
func (o onCallSettings) check(at config.Places) error {
	var errs []error
	seen := map[string]bool{}
	for i, r := range o.Resolvers {
		key := fmt.Sprintf("on_call.resolvers[%d]", i)
		if seen[r.Group] {
			errs = append(errs, at.Mistake(key+".group", fmt.Sprintf("%q: another resolver says who is on call in that group", r.Group)))
		}
		seen[r.Group] = true
		if _, err := r.build(false); err != nil {
			if f, ok := errors.AsType[*notify.FieldError](err); ok {
				err = at.Mistake(key+"."+f.Field, f.Text)
			}
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// control reads the files and gives what a node is told.
func (o onCallSettings) control() (all []*notify.Resolver, err error) {
	for _, r := range o.Resolvers {
		resolver, err := r.build(true)
		if err != nil {
			return nil, fmt.Errorf("%w: on_call resolver of %s: %w", config.ErrConfig, r.Group, err)
		}
		all = append(all, resolver)
	}
	return all, nil
}

// build makes a resolver. Unless open, the files that it names are not looked at, and something that would do stands in for each.
func (r resolverSettings) build(open bool) (*notify.Resolver, error) {
	c := notify.ResolverConfig{Group: r.Group, URL: r.URL, Every: time.Duration(r.Every)}
	var err error
	if c.Keys, err = signingKeys(r.SecretFiles, open); err != nil {
		return nil, err
	}
	if c.Roots, err = rootsOf(r.CAFile, open); err != nil {
		return nil, err
	}
	return notify.NewResolver(c, time.Now)
}
