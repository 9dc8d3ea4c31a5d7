// Command lag-monitor injects heartbeats at the head of pipelines, listens at their ends, and exports
// how late they come out and which ones do not. This package holds the flags, subcommands, signals and
// exit codes, one file per subcommand; the work is done by the packages that it starts.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"

	"github.com/alecthomas/kingpin/v2"
	"github.com/prometheus/common/promslog"
	promslogflag "github.com/prometheus/common/promslog/flag"
	"github.com/prometheus/common/version"
)

// The exit codes.
const (
	exitOK      = 0
	exitFailure = 1 // something went wrong while running
	exitUsage   = 2 // the flags or the configuration are wrong: starting again will not help
)

const name = "lag-monitor"

// defaultConfig is the configuration file where no flag names one.
const defaultConfig = "/etc/lag-monitor/config.yaml"

// errSilent ends with exitFailure, and what is to be said has been said.
var errSilent = errors.New("")

// usageError marks an error that starting again will not cure.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	setVersion()
	app := kingpin.New(name, "Injects heartbeats at the head of pipelines and measures how late they come out, if they do.")
	app.UsageWriter(stdout).ErrorWriter(stderr)
	app.Version(version.Print(name))
	app.UsageTemplate(helpTemplate).UsageFuncs(helpFuncs())
	app.HelpFlag.Short('h')
	env := &environment{stdout: stdout, stderr: stderr}
	addLogFlags(app, env)

	commands := make(map[string]func() error)
	for _, add := range subcommands() {
		command, do := add(app, env)
		commands[command] = do
	}

	if len(args) > 0 && args[0] == completeFlag {
		for _, c := range complete(app.Model(), args[1:]) {
			fmt.Fprintln(stdout, c)
		}
		return exitOK
	}
	command, err := app.Parse(args)
	if err != nil {
		err = usageError{fmt.Errorf("%w (try %s --help)", err, name)}
	} else {
		err = commands[command]()
	}
	if err == nil {
		return exitOK
	}
	if text := err.Error(); text != "" {
		for line := range strings.SplitSeq(strings.TrimRight(text, "\n"), "\n") {
			fmt.Fprintf(stderr, "%s: %s\n", name, line)
		}
	}
	var usage usageError
	if errors.As(err, &usage) {
		return exitUsage
	}
	return exitFailure
}

// subcommands lists what adds each one to the command line, in the order of the help text.
func subcommands() []func(*kingpin.Application, *environment) (string, func() error) {
	return []func(*kingpin.Application, *environment) (string, func() error){
		addRun, addCheck, addPing, addTail, addToken, addRules, addDashboard, addSchema, addCompletion, addDemo, addVersion,
	}
}

func addLogFlags(app *kingpin.Application, env *environment) { promslogflag.AddFlags(app, &env.log) }

// environment is what the subcommands share.
type environment struct {
	stdout, stderr io.Writer
	log            promslog.Config
}

// setVersion fills in what `go install module@version` knows and the linker was not told.
func setVersion() {
	if version.Version != "" {
		return
	}
	version.Version = "unknown"
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		version.Version = info.Main.Version
	}
}
