package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/alecthomas/kingpin/v2"

	"github.com/lag-monitor/lag-monitor/internal/config"
	"github.com/lag-monitor/lag-monitor/internal/ping"
)

const completionHelp = `Print a script that completes commands, flags, and the names of probes and sinks in a shell.

  source <(lag-monitor completion bash)                             # in ~/.bashrc
  source <(lag-monitor completion zsh)                              # in ~/.zshrc, after compinit
  lag-monitor completion fish > ~/.config/fish/completions/lag-monitor.fish

Names come from the file that --config.file on the same line names.`

// completeFlag asks for what may stand at the end of a line. It is the one that kingpin's scripts use.
const completeFlag = "--completion-bash"

// scripts are the shells' sides. A line that bash has cut at = is put together again by complete. Where
// nothing fits, the shell offers files.
var scripts = map[string]string{
	"bash": `_lag_monitor() {
    local IFS=$'\n'
    COMPREPLY=( $(compgen -W "$("${COMP_WORDS[0]}" --completion-bash "${COMP_WORDS[@]:1:$COMP_CWORD}" 2>/dev/null)" -- "${COMP_WORDS[$COMP_CWORD]#=}") )
}
complete -o default -F _lag_monitor lag-monitor
`,
	"zsh": `#compdef lag-monitor
_lag_monitor() {
    local -a matches
    matches=("${(@f)$("${words[1]}" --completion-bash "${(@)words[2,$CURRENT]}" 2>/dev/null)}")
    compadd -- ${matches:#}
    if [[ $compstate[nmatches] -eq 0 && $words[$CURRENT] != -* ]]; then
        _files
    fi
}
compdef _lag_monitor lag-monitor
`,
	"fish": `function __lag_monitor
    set -l words (commandline -opc)
    $words[1] --completion-bash $words[2..] (commandline -ct) 2>/dev/null
end
complete -c lag-monitor -n 'test -n "$(__lag_monitor)"' -f -a '(__lag_monitor)'
`,
}

func addCompletion(app *kingpin.Application, env *environment) (string, func() error) {
	c := app.Command("completion", completionHelp)
	shell := c.Arg("shell", "bash, zsh or fish.").Required().Enum(sorted(scripts)...)
	return c.FullCommand(), func() error {
		_, err := fmt.Fprint(env.stdout, scripts[*shell])
		return err
	}
}

// values are what may stand in a place that kingpin does not tell of: "COMMAND" for an argument, "COMMAND
// --FLAG" for the value of a flag. They get the configuration of the line, which is nil if it has a mistake.
func values() map[string]func(*config.Config) []string {
	fixed := func(v ...string) func(*config.Config) []string {
		return func(*config.Config) []string { return v }
	}
	return map[string]func(*config.Config) []string{
		"ping": ofConfig(ping.Names), "tail": ofConfig(sinkNames), "completion": fixed(sorted(scripts)...),
		"dashboard": func(*config.Config) []string {
			names, _ := dashboardNames()
			return names
		},
		"rules --format": fixed("prometheus", "operator"),
		"--log.level":    fixed("debug", "info", "warn", "error"), "--log.format": fixed("logfmt", "json"),
	}
}

func ofConfig(f func(*config.Config) []string) func(*config.Config) []string {
	return func(cfg *config.Config) []string {
		if cfg == nil {
			return nil
		}
		return f(cfg)
	}
}

// complete returns what the last word of a line may become; none where a file may stand.
func complete(app *kingpin.ApplicationModel, words []string) (out []string) {
	cut := slices.Contains(words[max(0, len(words)-2):], "=") // by bash, which wants what is behind the = alone
	words = joinEquals(words)
	if len(words) == 0 {
		words = []string{""}
	}
	before, word := words[:len(words)-1], words[len(words)-1]

	var command *kingpin.CmdModel // of the line; nil before it is named
	flags := app.Flags
	for _, c := range app.Commands { // without a command the default one is meant
		if c.Default {
			flags = slices.Concat(app.Flags, c.Flags)
		}
	}
	var waits *kingpin.FlagModel // for its value
	args := 0
	for _, w := range before {
		switch {
		case waits != nil:
			waits = nil
		case strings.HasPrefix(w, "-"):
			if f := flagOf(flags, w); f != nil && !strings.Contains(w, "=") && !isBool(f) {
				waits = f
			}
		case command == nil:
			i := slices.IndexFunc(app.Commands, func(c *kingpin.CmdModel) bool { return c.Name == w })
			if i < 0 {
				return nil
			}
			command = app.Commands[i]
			flags = slices.Concat(app.Flags, command.Flags)
		default:
			args++
		}
	}

	lookUp := func(key string) {
		if f := values()[key]; f != nil {
			cfg, _, err := config.NewLoader(configFileIn(before)).Load()
			if err != nil {
				cfg = nil
			}
			out = append(out, f(cfg)...)
		}
	}
	name := ""
	if command != nil {
		name = command.Name
	}
	name, value, isValue := valueOf(waits, flags, name, word)
	switch {
	case isValue:
		lookUp(name)
		lookUp(name[strings.LastIndexByte(name, ' ')+1:])
		if whole := strings.TrimSuffix(word, value); waits == nil && !cut {
			for i := range out {
				out[i] = whole + out[i]
			}
		} else {
			word = value
		}
	case strings.HasPrefix(word, "-"):
		for _, f := range flags {
			if !f.Hidden {
				out = append(out, "--"+f.Name)
			}
		}
	case command == nil:
		for _, c := range app.Commands {
			if !c.Hidden {
				out = append(out, c.Name)
			}
		}
	case args == 0:
		lookUp(name)
	}
	return slices.DeleteFunc(out, func(s string) bool { return !strings.HasPrefix(s, word) })
}

// valueOf tells whether word is the value of a flag, of which flag, and what of the value is there.
func valueOf(waits *kingpin.FlagModel, flags []*kingpin.FlagModel, command, word string) (key, value string, ok bool) {
	if waits != nil {
		return command + " --" + waits.Name, word, true
	}
	if flag, value, ok := strings.Cut(word, "="); ok && strings.HasPrefix(flag, "-") {
		if f := flagOf(flags, flag); f != nil {
			return command + " --" + f.Name, value, true
		}
	}
	return command, "", false
}

// joinEquals puts together what bash cuts: --flag, =, value.
func joinEquals(words []string) (out []string) {
	for i := 0; i < len(words); i++ {
		if words[i] != "=" || len(out) == 0 {
			out = append(out, words[i])
			continue
		}
		out[len(out)-1] += "="
		if i++; i < len(words) {
			out[len(out)-1] += words[i]
		}
	}
	return out
}

func flagOf(flags []*kingpin.FlagModel, word string) *kingpin.FlagModel {
	name, _, _ := strings.Cut(word, "=")
	for _, f := range flags {
		if name == "--"+f.Name || f.Short != 0 && name == "-"+string(f.Short) {
			return f
		}
	}
	return nil
}

func isBool(f *kingpin.FlagModel) bool {
	b, ok := f.Value.(interface{ IsBoolFlag() bool })
	return ok && b.IsBoolFlag()
}

// configFileIn finds the value of --config.file in a line that is not complete and so is not parsed.
func configFileIn(words []string) string {
	const flag = "--config.file"
	for i, w := range words {
		if v, ok := strings.CutPrefix(w, flag+"="); ok {
			return v
		}
		if w == flag && i+1 < len(words) {
			return words[i+1]
		}
	}
	return defaultConfig
}

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
