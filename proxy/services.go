package proxy

import (
	"errors"
	"net"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
)

// ServiceSettings are what one of several services has for itself, under services.
// Each key means what it means at the top of a file with one service.
type ServiceSettings struct {
	Service        string   `yaml:"service"`
	Listen         string   `yaml:"listen"`
	Protocol       string   `yaml:"protocol"`
	Hosts          []string `yaml:"hosts"`
	Upstream       string   `yaml:"upstream"`
	Certificate    string   `yaml:"certificate"`
	Key            string   `yaml:"key"`
	Emergency      string   `yaml:"emergency"`
	AllowSemicolon bool     `yaml:"allow_semicolon"`

	Mode    string            `yaml:"mode"`
	Until   string            `yaml:"until"`
	Observe []ObserveSettings `yaml:"observe"`
	Allow   []AllowSettings   `yaml:"allow"`
	Limits  ConditionSettings `yaml:"limits"`

	Postgres PostgresSettings `yaml:"postgres"`
}

// ConditionSettings are those of LimitSettings that a service may have for itself.
type ConditionSettings struct {
	Sources        []string `yaml:"sources"`
	Hours          []string `yaml:"hours"`
	TimeZone       string   `yaml:"time_zone"`
	RatePerGrant   string   `yaml:"rate_per_grant"`
	RatePerSubject string   `yaml:"rate_per_subject"`
}

// ofOne are the keys that no two services can share: at the top, beside services,
// they are refused.
func ofOne() []string {
	return []string{"service", "hosts", "upstream", "certificate", "key", "mode", "until", "observe", "allow", "postgres"}
}

// whose is the full name of a key that was looked for in a service.
func (s *Settings) whose(key string) string {
	if s.in == "" {
		return key
	}
	for f := range reflect.TypeFor[ServiceSettings]().Fields() {
		if name := f.Tag.Get("yaml"); key == name || strings.HasPrefix(key, name+"[") || strings.HasPrefix(key, name+".") {
			return s.in + "." + key
		}
	}
	return key
}

// split gives each service settings of its own. A file with one service is that one.
func (s *Settings) split() []Settings {
	if len(s.Services) == 0 {
		return []Settings{*s}
	}
	all := make([]Settings, len(s.Services))
	for i := range s.Services {
		one := *s
		one.Services, one.in = nil, "services["+strconv.Itoa(i)+"]"
		laid(reflect.ValueOf(&one).Elem(), reflect.ValueOf(&s.Services[i]).Elem())
		// Each follows the control nodes as itself, and keeps what it heard in files of its own.
		one.Revocation.StateFile = fileOf(s.Revocation.StateFile, one.Service)
		if one.RootsFile == "" && s.Revocation.StateFile != "" {
			one.RootsFile = filepath.Join(filepath.Dir(s.Revocation.StateFile), "roots.jsonl")
		}
		one.RootsFile = fileOf(one.RootsFile, one.Service)
		all[i] = one
	}
	return all
}

// laid puts what is set in from over what is in to, by name.
func laid(to, from reflect.Value) {
	for f := range from.Type().Fields() {
		v, over := from.FieldByIndex(f.Index), to.FieldByName(f.Name)
		switch {
		case v.IsZero():
		case v.Type() == over.Type():
			over.Set(v)
		default:
			laid(over, v)
		}
	}
}

// fileOf is a file's name with the service's in it: revocations-payments.json.
func fileOf(path, service string) string {
	if path == "" {
		return ""
	}
	ext := filepath.Ext(path)
	return strings.TrimSuffix(path, ext) + "-" + service + ext
}

// newConfigs checks the settings of all services, and that a client can tell them apart.
func newConfigs(c Config) ([]*config, error) {
	var errs []error
	s := &c.Settings
	if len(s.Services) > 0 {
		top := reflect.ValueOf(s).Elem()
		for f := range top.Type().Fields() {
			for _, key := range ofOne() {
				if f.Tag.Get("yaml") == key && !top.FieldByIndex(f.Index).IsZero() {
					errs = append(errs, s.mistake(key, "stands beside services, and each has its own: put it there"))
				}
			}
		}
	}
	var all []*config
	parts := s.split()
	for i := range parts {
		part := c
		part.Settings = parts[i]
		cfg, err := newConfig(part)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		cfg.among = len(parts) > 1
		all = append(all, cfg)
	}
	if len(errs) == 0 {
		errs = append(errs, tellApart(parts))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, once(err)
	}
	return all, nil
}

// once takes repeated mistakes out: what is wrong at the top is wrong for each service.
func once(err error) error {
	var all []error
	said := map[string]bool{}
	var walk func(error)
	walk = func(err error) {
		if joined, ok := err.(interface{ Unwrap() []error }); ok {
			for _, part := range joined.Unwrap() {
				walk(part)
			}
			return
		}
		if !said[err.Error()] {
			said[err.Error()] = true
			all = append(all, err)
		}
	}
	walk(err)
	return errors.Join(all...)
}

// tellApart refuses services that nobody could tell apart: by their names, or on
// one address by the name that a client says in its handshake.
func tellApart(parts []Settings) error {
	var errs []error
	names, owners := map[string]bool{}, map[string]string{}
	listening := map[string]int{}
	for i := range parts {
		listening[parts[i].Listen]++
	}
	for i := range parts {
		s := &parts[i]
		if names[s.Service] {
			errs = append(errs, s.mistake("service", "%q is there twice", s.Service))
		}
		names[s.Service] = true
		if listening[s.Listen] < 2 {
			continue
		}
		if s.Listen == "" {
			errs = append(errs, s.mistake("listen", "is missing"))
			continue
		}
		if s.Protocol == "postgres" {
			errs = append(errs, s.mistake("listen", "is shared, and clients of postgres do not begin with the name that they want: give it an address of its own"))
			continue
		}
		named := 0
		for h, host := range s.Hosts {
			key := "hosts[" + strconv.Itoa(h) + "]"
			if net.ParseIP(host) != nil {
				continue // no client says an address in its handshake (RFC 6066 §3)
			}
			named++
			if other := owners[s.Listen+" "+host]; other != "" {
				errs = append(errs, s.mistake(key, "%q is %s's on %s already", host, other, s.Listen))
			}
			owners[s.Listen+" "+host] = s.Service
		}
		if named == 0 {
			errs = append(errs, s.mistake("hosts", "has no name: on %s, which it shares, clients say by name whom they want", s.Listen))
		}
	}
	return errors.Join(errs...)
}
