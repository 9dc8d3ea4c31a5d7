package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// maxProblems is how many problems of one file are told. More than a screenful helps nobody.
const maxProblems = 20

// A Problem is one mistake in one file.
type Problem struct {
	File         string
	Line, Column int    // from 1; 0 where the whole file is meant
	Path         string // the key's full path, such as "probes.orders.inject.http.url"; may be empty
	Text         string // what is wrong and what is valid
}

// Error returns "file:line: path: text".
func (p *Problem) Error() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d", p.Line)
	}
	b.WriteString(": ")
	if p.Path != "" {
		b.WriteString(cut(p.Path, 300))
		b.WriteString(": ")
	}
	b.WriteString(cut(p.Text, 1000))
	return b.String()
}

// cut shortens what a file can make as long as it likes.
func cut(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

// Problems is an error of several lines, one per problem.
type Problems []*Problem

func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap lets errors.As find a single Problem.
func (ps Problems) Unwrap() []error {
	errs := make([]error, len(ps))
	for i, p := range ps {
		errs[i] = p
	}
	return errs
}

// sorted returns the problems of one file by line, without repetitions, cut to maxProblems.
func (ps Problems) sorted() Problems {
	slices.SortStableFunc(ps, func(a, b *Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column), cmp.Compare(a.Path, b.Path), cmp.Compare(a.Text, b.Text))
	})
	ps = slices.CompactFunc(ps, func(a, b *Problem) bool { return *a == *b })
	if more := len(ps) - maxProblems; more > 0 {
		file := ps[0].File
		ps = append(ps[:maxProblems:maxProblems], &Problem{File: file, Text: fmt.Sprintf("and %d more problems", more)})
	}
	return ps
}

// separators are what people write between words in one way or another.
var separators = strings.NewReplacer("-", "", "_", "", " ", "")

// near returns the candidate that a person most likely meant, or "".
func near(got string, candidates []string) string {
	plain := func(s string) string { return separators.Replace(strings.ToLower(s)) }
	// A key of a hundred bytes is no slip of the finger, and the distance below is quadratic.
	if len(got) > 64 {
		return ""
	}
	best, bestDist := "", 1+min(3, len(got)/3)
	if len(got) <= 3 {
		bestDist = 2
	}
	for _, c := range candidates {
		g, c2 := plain(got), plain(c)
		d := distance(g, c2)
		if short := min(len(g), len(c2)); short >= 3 && g[:short] == c2[:short] {
			d = min(d, 1) // "env" for "environment", and the other way round
		}
		if d < bestDist {
			best, bestDist = c, d
		}
	}
	return best
}

// distance counts the insertions, deletions, replacements and swaps of neighbours between a and b.
func distance(a, b string) int {
	prev2, prev, cur := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], prev2[j-2]+1)
			}
		}
		prev2, prev, cur = prev, cur, prev2
	}
	return prev[len(b)]
}

// Unknown is the text for a word that is none of the valid ones; what is "key", "kind of sink", ….
func Unknown(what, got string, valid []string) string {
	if n := near(got, valid); n != "" {
		return fmt.Sprintf("unknown %s (did you mean %q?)", what, n)
	}
	switch len(valid) {
	case 0:
		return fmt.Sprintf("unknown %s; there are none", what)
	default:
		valid = slices.Sorted(slices.Values(valid))
		if len(valid) > 20 {
			valid = append(valid[:20:20], "…")
		}
		return fmt.Sprintf("unknown %s; valid: %s", what, strings.Join(valid, ", "))
	}
}
