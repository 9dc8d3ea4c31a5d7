package main

import (
	"strings"
	"text/template"
)

// helpTemplate shows a command with all that it has to say, or, where none is named, the first line of each
// and the flags of the one that runs without a name.
const helpTemplate = `{{define "Arguments" -}}
{{if .FlagSummary}} {{.FlagSummary}}{{end -}}
{{range .Args}}{{if not .Hidden}} {{if not .Required}}[{{end}}<{{.Name}}>{{if .Value|IsCumulative}}...{{end}}{{if not .Required}}]{{end}}{{end}}{{end -}}
{{end -}}

{{if .Context.SelectedCommand -}}
usage: {{.App.Name}} {{.Context.SelectedCommand}}{{template "Arguments" .Context.SelectedCommand}}

{{.Context.SelectedCommand.Help|Wrap 0}}
{{with .Context.SelectedCommand.Args -}}
Arguments:
{{.|ArgsToTwoColumns|FormatTwoColumns}}
{{end -}}
{{with .Context.SelectedCommand.Flags -}}
Flags:
{{.|FlagsToTwoColumns|FormatTwoColumns}}
{{end -}}
Flags of all commands:
{{.App.Flags|FlagsToTwoColumns|FormatTwoColumns -}}
{{else -}}
usage: {{.App.Name}}{{template "Arguments" .App}} [<command>]

{{.App.Help|Wrap 0}}
Commands ({{.App.Name}} help COMMAND says more):
{{range .App.Commands}}{{if not .Hidden}}  {{.Name}}{{template "Arguments" .}}
      {{.Help|FirstLine}}
{{end}}{{end}}
{{range .App.Commands}}{{if .Default -}}
Flags of {{.Name}}, which is what happens without a command:
{{.Flags|FlagsToTwoColumns|FormatTwoColumns}}
{{end}}{{end -}}
Flags of all commands:
{{.App.Flags|FlagsToTwoColumns|FormatTwoColumns -}}
{{end -}}
`

func helpFuncs() template.FuncMap {
	return template.FuncMap{"FirstLine": func(s string) string {
		first, _, _ := strings.Cut(s, "\n")
		return first
	}}
}
