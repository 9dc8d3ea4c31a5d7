package config

// Near returns the candidate that a person who wrote got most likely meant, or "" when none is like it.
func Near(got string, candidates []string) string { return near(got, candidates) }
