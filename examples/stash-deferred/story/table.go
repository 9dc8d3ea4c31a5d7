package story

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
)

// Where the table is in the document.
const (
	begin = "<!-- stories: begin -->\n"
	end   = "<!-- stories: end -->\n"
)

// Write replaces the tables of these stories in a document, and leaves those of others as they are.
func Write(path string, told []Told) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(b), begin)
	tables, after, closed := strings.Cut(rest, end)
	if !ok || !closed {
		return fmt.Errorf("%s has no place for the stories between %q and %q", path, begin, end)
	}
	sections := map[int]string{}
	for _, section := range strings.Split(tables, heading)[1:] {
		number, _, _ := strings.Cut(section, ".")
		n, err := strconv.Atoi(number)
		if err != nil {
			return fmt.Errorf("%s: the story %q has no number", path, section)
		}
		sections[n] = heading + strings.TrimRight(section, "\n") + "\n"
	}
	for _, t := range told {
		sections[t.Number] = t.table()
	}
	var all strings.Builder
	for _, n := range slices.Sorted(maps.Keys(sections)) {
		all.WriteString(sections[n])
	}
	return os.WriteFile(path, []byte(before+begin+all.String()+"\n"+end+after), 0o644) //nolint:gosec // a public file
}

const heading = "\n### "

// table writes a story in Markdown.
func (t Told) table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s%d. %s\n\n| after | what happens | what is seen | in #stash-deferred | what follows |\n| --: | --- | --- | --- | --- |\n", heading, t.Number, t.Title)
	for _, s := range t.Steps {
		fmt.Fprintf(&b, "| %.0f s | %s | %s | %s | %s |\n", s.After.Seconds(), cell(s.What), cell(s.Seen), cell(slack(s.Page)), cell(s.Conclusion))
	}
	return b.String()
}

// slack leaves out the lines of a message that are nothing but a link.
func slack(text string) string {
	var lines []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "<http") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "\n")
}

// cell makes a text one cell of a table.
func cell(text string) string {
	text = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", "|", `\|`).Replace(strings.TrimSpace(text))
	return strings.ReplaceAll(text, "\n", "<br>")
}
