package grant

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"
)

// MarshalJSON is {"service":"payments","permissions":["GET /a"]}, with the permissions in the
// canonical text form and order; the zero Scope is an error.
func (s Scope) MarshalJSON() ([]byte, error) {
	if s.IsZero() {
		return nil, fmt.Errorf("%w: the zero scope has no JSON", ErrScope)
	}
	return json.Marshal(struct {
		Service     string   `json:"service"`
		Permissions []string `json:"permissions"`
	}{s.service, s.Texts()})
}

// UnmarshalJSON reads what MarshalJSON writes, with the permissions in any order and in any
// spelling that ParsePermission takes. Keys that are unknown, missing, repeated or in another
// case are ErrScope: encoding/json would take the last of two, other parsers the first.
func (s *Scope) UnmarshalJSON(data []byte) error {
	if !utf8.Valid(data) || hasLoneSurrogate(data) {
		return fmt.Errorf("%w: its JSON is not UTF-8", ErrScope)
	}
	service, texts, err := readScopeJSON(json.NewDecoder(bytes.NewReader(data)))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrScope, err)
	}
	parsed, err := ParseScope(service, texts)
	if err != nil {
		return err
	}
	*s = parsed
	return nil
}

// readScopeJSON reads one object with exactly the two keys, and nothing behind it.
func readScopeJSON(dec *json.Decoder) (service string, texts []string, err error) {
	if open, err := dec.Token(); err != nil || open != json.Delim('{') {
		return "", nil, errors.New(`not a JSON object; write {"service":…,"permissions":[…]}`)
	}
	seen := make(map[json.Token]bool)
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return "", nil, err
		}
		switch {
		case seen[key]:
			return "", nil, fmt.Errorf("key %q twice", key)
		case key == "service":
			err = dec.Decode(&service)
		case key == "permissions":
			err = dec.Decode(&texts)
		default:
			return "", nil, fmt.Errorf("unknown key %q; the keys are service and permissions", key)
		}
		if err != nil {
			return "", nil, err
		}
		seen[key] = true
	}
	if _, err := dec.Token(); err != nil {
		return "", nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return "", nil, errors.New("more after the JSON object")
	}
	return service, texts, nil
}

// hasLoneSurrogate tells whether data, which is JSON, has half of a surrogate pair in an
// escape. Go reads it as U+FFFD, others keep it or fail.
func hasLoneSurrogate(data []byte) bool {
	for i := 0; i+1 < len(data); i++ {
		if data[i] != '\\' {
			continue
		}
		if data[i+1] != 'u' {
			i++ // over the escaped byte, which may be a backslash
			continue
		}
		switch surrogate(data[i:]) {
		case 'h':
			if surrogate(data[min(i+6, len(data)):]) != 'l' {
				return true
			}
			i += 11
		case 'l':
			return true
		default:
			i += 5
		}
	}
	return false
}

// surrogate is 'h' or 'l' if data begins with the escape of a high or low surrogate.
func surrogate(data []byte) byte {
	if len(data) < 6 || data[0] != '\\' || data[1] != 'u' || data[2]|0x20 != 'd' {
		return 0
	}
	switch c := data[3] | 0x20; {
	case c == '8' || c == '9' || c == 'a' || c == 'b':
		return 'h'
	case c >= 'c' && c <= 'f':
		return 'l'
	default:
		return 0
	}
}
