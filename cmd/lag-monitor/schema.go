package main

import (
	"github.com/alecthomas/kingpin/v2"

	lagmonitor "github.com/lag-monitor/lag-monitor"
	"github.com/lag-monitor/lag-monitor/internal/config"
)

const schemaHelp = `Print the JSON Schema of configuration files, for editors and linters.

Editors with a YAML language server then know every key, its type, its default and what it does, and mark mistakes while one types. This line at the top of a file names the schema:

  # yaml-language-server: $schema=lag-monitor.schema.json

  lag-monitor schema > lag-monitor.schema.json

It is of draft 2020-12, and belongs to this version of the program. What only ` + "`lag-monitor check`" + ` can see it does not: names of other files, limits of durations, templates.`

func addSchema(app *kingpin.Application, env *environment) (string, func() error) {
	c := app.Command("schema", schemaHelp)
	return c.FullCommand(), func() error {
		b, err := config.Schema(lagmonitor.Example)
		if err != nil {
			return err
		}
		_, err = env.stdout.Write(b)
		return err
	}
}
