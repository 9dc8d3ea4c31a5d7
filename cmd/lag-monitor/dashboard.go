package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/alecthomas/kingpin/v2"

	"github.com/lag-monitor/lag-monitor/dashboards"
	"github.com/lag-monitor/lag-monitor/internal/config"
)

const dashboardHelp = `Print a Grafana dashboard of this version, as the JSON that Grafana imports.

Without a name it lists those that there are. They read what the rules of ` + "`lag-monitor rules --dashboards`" + ` record.

  lag-monitor dashboard                      which there are
  lag-monitor dashboard fleet > fleet.json
  lag-monitor dashboard --dir=/var/lib/grafana/dashboards/lag-monitor   all of them, for provisioning

Exit codes: 0; 1 when a file cannot be written; 2 when there is no such dashboard.`

func addDashboard(app *kingpin.Application, env *environment) (string, func() error) {
	c := app.Command("dashboard", dashboardHelp)
	which := c.Arg("name", "The dashboard.").String()
	dir := c.Flag("dir", "Write all of them into this folder, which exists.").PlaceHolder("DIR").String()
	return c.FullCommand(), func() error {
		names, err := dashboardNames()
		if err != nil {
			return err
		}
		switch {
		case *which != "" && *dir != "":
			return usageError{errors.New("--dir is for all dashboards: leave the name out")}
		case *dir != "":
			return writeDashboards(names, *dir)
		case *which != "":
			n, err := config.Pick("dashboard", strings.TrimSuffix(*which, ".json"), names)
			if err != nil {
				return usageError{err}
			}
			b, err := dashboards.Files.ReadFile(n + ".json")
			if err != nil {
				return err
			}
			_, err = env.stdout.Write(b)
			return err
		}
		tw := tabwriter.NewWriter(env.stdout, 0, 0, 2, ' ', 0)
		fmt.Fprintln(tw, "NAME\tTITLE\tUID")
		for _, n := range names {
			b, err := dashboards.Files.ReadFile(n + ".json")
			if err != nil {
				return err
			}
			var d struct{ Title, UID string }
			if err := json.Unmarshal(b, &d); err != nil {
				return fmt.Errorf("dashboard %s: %w", n, err)
			}
			fmt.Fprintf(tw, "%s\t%s\t%s\n", n, d.Title, d.UID)
		}
		return tw.Flush()
	}
}

// dashboardNames lists the dashboards, sorted.
func dashboardNames() ([]string, error) {
	names, err := fs.Glob(dashboards.Files, "*.json")
	for i, n := range names {
		names[i] = strings.TrimSuffix(n, ".json")
	}
	return names, err
}

func writeDashboards(names []string, dir string) error {
	for _, n := range names {
		b, err := dashboards.Files.ReadFile(n + ".json")
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, n+".json"), b, 0o644); err != nil {
			return err
		}
	}
	return nil
}
