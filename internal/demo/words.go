package demo

import (
	"fmt"
	"strings"
)

// splitWords splits a command as a POSIX shell does, as far as the commands in
// the proxy's refusals go: blanks and single quotes. Anything else that a shell
// would act on is refused.
func splitWords(line string) ([]string, error) {
	var words []string
	var word strings.Builder
	inWord, quoted := false, false
	for _, r := range line {
		switch {
		case r == '\'':
			quoted, inWord = !quoted, true
		case quoted:
			word.WriteRune(r)
		case r == ' ':
			if inWord {
				words = append(words, word.String())
				word.Reset()
				inWord = false
			}
		case strings.ContainsRune("\"\\$`;&|<>(){}*?[]~#!\n\t", r):
			return nil, fmt.Errorf("%q: unquoted %q", line, r)
		default:
			word.WriteRune(r)
			inWord = true
		}
	}
	if quoted {
		return nil, fmt.Errorf("%q: a quote is not closed", line)
	}
	if inWord {
		words = append(words, word.String())
	}
	return words, nil
}
