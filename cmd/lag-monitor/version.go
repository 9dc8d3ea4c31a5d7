package main

import (
	"fmt"

	"github.com/alecthomas/kingpin/v2"
	"github.com/prometheus/common/version"
)

func addVersion(app *kingpin.Application, env *environment) (string, func() error) {
	c := app.Command("version", "Show the version.")
	return c.FullCommand(), func() error {
		_, err := fmt.Fprintln(env.stdout, version.Print(name))
		return err
	}
}
