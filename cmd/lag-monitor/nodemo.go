//go:build nodemo

package main

import (
	"errors"

	"github.com/alecthomas/kingpin/v2"
)

// addDemo stands for the demo where it was left out, as in the image: it brings a NATS server, a quarter
// of the binary.
func addDemo(app *kingpin.Application, _ *environment) (string, func() error) {
	c := app.Command("demo", "Not in this build. Where the source is: make demo.").Hidden()
	return c.FullCommand(), func() error {
		return usageError{errors.New("this build has no demo; where the source is, make demo has it")}
	}
}
