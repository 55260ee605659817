//go:build !linux

package proxy

import "errors"

// confine knows no way on this system.
func confine(_ reach, rule sandboxRule) (string, error) {
	if rule == sandboxRequired {
		return "", errors.New("this system has no Landlock")
	}
	return "none: this system has no Landlock", nil
}
