//go:build !unix

package demo

import (
	"os"
	"time"
)

// interruptible: readKeys ends with its context only when a key is pressed, or with the process.
const interruptible = false

// waitInput returns true at once: the read blocks.
func waitInput(*os.File, time.Duration) bool { return true }
