//go:build !unix

package sinks

import "io/fs"

// fileID is the identity of a file on this host, whatever its name. Here it has none that can be written down, and so the
// sink has no position that outlives the process.
func fileID(fs.FileInfo) string { return "" }
