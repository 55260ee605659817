package approval

import (
	"strings"
	"unicode/utf8"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallpass/hallpass/grant"
)

// parseID reads a SPIFFE ID with a path, in its one spelling.
func parseID(what, text string) (spiffeid.ID, error) {
	id, err := spiffeid.FromString(text)
	if err != nil {
		return spiffeid.ID{}, invalid("%s %q is not a SPIFFE ID: %v", what, text, err)
	}
	if id.String() != text || id.Path() == "" {
		return spiffeid.ID{}, invalid("%s %q is not a SPIFFE ID with a path, in canonical form", what, text)
	}
	if len(text) > 1024 {
		return spiffeid.ID{}, invalid("%s is %d bytes long, at most 1024", what, len(text))
	}
	return id, nil
}

// CheckReason refuses what no command takes for a reason, for whoever is to keep one
// until it can be proposed.
func CheckReason(text string) error { return checkText("the reason", text, 1) }

// checkText refuses words for people that do not show as what they are: a
// reason with escape sequences or reversed text makes an approver read something
// else than what is written.
func checkText(what, text string, least int) error {
	if len(strings.TrimSpace(text)) < least {
		return invalid("%s is missing", what).then("say in a few words why")
	}
	if len(text) > MaxReason {
		return invalid("%s is %d bytes long, at most %d", what, len(text), MaxReason)
	}
	if !utf8.ValidString(text) {
		return invalid("%s is not valid UTF-8", what)
	}
	for _, r := range text {
		if grant.HiddenInText(r) {
			return invalid("%s holds %U, which does not show, or changes how what is around it shows", what, r).then("take it out")
		}
	}
	// What is above a wall of empty lines, the scope first of all, leaves the screen.
	if lines := strings.Count(text, "\n") + 1; lines > maxLines {
		return invalid("%s has %d lines, at most %d", what, lines, maxLines)
	}
	return nil
}

// checkHash refuses what is not a SHA-256 in lower-case hex.
func checkHash(what, text string) error {
	if len(text) != 64 || !isHex(text) {
		return invalid("%s is not a SHA-256 in lower-case hex", what)
	}
	return nil
}

// checkSerial refuses all but a positive number of at most 20 bytes (RFC 5280
// §4.1.2.2) in lower-case hex without leading zeros. Were there two spellings
// of a serial, it could be used twice.
func checkSerial(text string) error {
	if text == "" || len(text) > 40 || text[0] == '0' || !isHex(text) || (len(text) == 40 && text[0] > '7') {
		return invalid("serial %q is not a positive number of at most 20 bytes in lower-case hex without leading zeros", text)
	}
	return nil
}

func isHex(text string) bool {
	return strings.Trim(text, "0123456789abcdef") == ""
}

// checkTrace refuses what is not a W3C traceparent of version 00.
func checkTrace(text string) error {
	if text == "" {
		return nil
	}
	parts := strings.Split(text, "-")
	if len(text) > maxTrace || len(parts) != 4 || parts[0] != "00" ||
		len(parts[1]) != 32 || len(parts[2]) != 16 || len(parts[3]) != 2 || !isHex(strings.Join(parts[1:], "")) {
		return invalid("trace %q is not a traceparent", text)
	}
	return nil
}
