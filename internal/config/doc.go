// Package config reads the configuration file: strict decoding with positions, defaults, includes
// that are isolated from each other, checks across the keys, and the report of `lag-monitor check`.
// It opens no connection except for that report, and starts nothing.
package config
