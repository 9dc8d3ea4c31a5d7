package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Pick chooses what a person has named on the command line: of the names that there are name itself, or the
// only one where name is empty. what is "probe" or "sink". The error says what would be valid.
func Pick(what, name string, names []string) (string, error) {
	switch {
	case len(names) == 0:
		return "", fmt.Errorf("there is no such %s in the configuration", what)
	case name == "" && len(names) == 1:
		return names[0], nil
	case name == "":
		return "", errors.New("name a " + what + ": " + strings.Join(names, ", "))
	case !slices.Contains(names, name):
		return "", fmt.Errorf("%q: %s", name, Unknown(what, name, names))
	}
	return name, nil
}
