package main

import (
	"fmt"
	"strings"
)

// docsFile lists what each panel answers, between two marks: the descriptions that the panels have.
const (
	docsFile  = "../../docs/dashboards.md"
	docsBegin = "<!-- What follows is written by dashboards/gen. -->\n"
	docsEnd   = "<!-- What dashboards/gen writes ends here. -->\n"
)

// documented puts the list of panels into the text of docsFile.
func documented(text string) (string, error) {
	before, rest, ok := strings.Cut(text, docsBegin)
	_, after, ok2 := strings.Cut(rest, docsEnd)
	if !ok || !ok2 {
		return "", fmt.Errorf("%s has no marks %q and %q", docsFile, docsBegin, docsEnd)
	}
	var b strings.Builder
	for _, d := range []dashboard{fleet(), probe()} {
		_, name, _ := strings.Cut(d.Title, " / ")
		fmt.Fprintf(&b, "\n## %s\n%s\n\n| panel | what it answers |\n| --- | --- |\n", name, d.Description)
		var list func(panels []panel)
		list = func(panels []panel) {
			for _, p := range panels {
				switch {
				case p.Type == "row" && *p.Collapsed:
					fmt.Fprintf(&b, "| **%s** | closed when the dashboard opens |\n", p.Title)
				case p.Type == "row":
					fmt.Fprintf(&b, "| **%s** | |\n", p.Title)
				case p.Type != "text":
					fmt.Fprintf(&b, "| %s | %s |\n", p.Title, strings.ReplaceAll(p.Description, "|", `\|`))
				}
				if p.Panels != nil {
					list(*p.Panels)
				}
			}
		}
		list(d.Panels)
	}
	return before + docsBegin + b.String() + "\n" + docsEnd + after, nil
}
