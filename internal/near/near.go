package near

import (
	"regexp"
	"slices"
	"strings"
)

// Of returns x, and x with the byte b put in at a place, in the place of the byte there, and
// behind it all; and x without that byte, with it in the other case, and twice.
func Of[T string | []byte](x T, at uint16, b byte) []T {
	text := string(x)
	i := int(at) % (len(text) + 1)
	all := []T{x, T(text[:i] + string([]byte{b}) + text[i:]), T(text + string([]byte{b}))}
	if i < len(text) {
		for _, other := range []string{string([]byte{b}), "", string([]byte{text[i] ^ 0x20}), text[i:i+1] + text[i:i+1]} {
			all = append(all, T(text[:i]+other+text[i+1:]))
		}
	}
	return all
}

var (
	number = regexp.MustCompile(`[0-9]+`)
	word   = regexp.MustCompile(`[^\s,'"{}\[\]]+`)
)

// Number returns x with other numbers in the place of one of those in it: none, one too few, and
// the same in ways that some readers read as another. Without a number in x there are none.
func Number(x []byte, at uint16) [][]byte {
	return instead(x, number, at, func(was string) []string {
		return []string{"0", "-1", "0" + was, was + "0", was + ".0", "0x" + was, "99999999999999999999"}
	})
}

// Word returns x with others in the place of one of the words in it: nothing, less than it was,
// more than it was. Without a word in x there are none.
func Word(x []byte, at uint16) [][]byte {
	return instead(x, word, at, func(was string) []string {
		return []string{"", was[:len(was)-1], was[:strings.LastIndex(was, "/")+1], was + "/", was + was}
	})
}

func instead(x []byte, what *regexp.Regexp, at uint16, others func(was string) []string) (all [][]byte) {
	places := what.FindAllIndex(x, -1)
	if len(places) == 0 {
		return nil
	}
	place := places[int(at)%len(places)]
	for _, other := range others(string(x[place[0]:place[1]])) {
		all = append(all, slices.Concat(x[:place[0]], []byte(other), x[place[1]:]))
	}
	return all
}
