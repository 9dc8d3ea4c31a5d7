package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"sort"
	"strings"
	"syscall"
	"time"
)

// sections are the measurements. Each runs in a process of its own, so that the memory of one is not
// that of another.
var sections = map[string]func() error{
	"heartbeat": heartbeatCost,
	"fleet":     fleetCost,
	"journal":   journalCost,
	"scrape":    scrapeCost,
}

func main() {
	only := flag.String("only", "", "measure one of "+strings.Join(names(), ", "))
	cpuProfile := flag.String("cpuprofile", "", "with -only: write a CPU profile to this file")
	memProfile := flag.String("memprofile", "", "with -only: write a heap profile to this file")
	flag.Parse()
	if *only != "" {
		debug.SetGCPercent(50) // as the daemon does
		f, ok := sections[*only]
		if !ok {
			fatal(fmt.Errorf("no section %q: there are %s", *only, strings.Join(names(), ", ")))
		}
		if err := profiled(f, *cpuProfile, *memProfile); err != nil {
			fatal(err)
		}
		return
	}
	self, err := os.Executable()
	if err != nil {
		fatal(err)
	}
	fmt.Printf("%s, %d cores\n", runtime.Version(), runtime.NumCPU())
	for _, name := range names() {
		fmt.Printf("\n%s\n", name)
		cmd := exec.Command(self, "-only", name)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			fatal(fmt.Errorf("%s: %w", name, err))
		}
	}
}

// profiled runs f and writes the profiles that are asked for. That of the heap is taken in the middle
// of a section, by heap.
func profiled(f func() error, cpuFile, memFile string) error {
	if cpuFile != "" {
		w, err := os.Create(cpuFile)
		if err != nil {
			return err
		}
		defer w.Close()
		if err := pprof.StartCPUProfile(w); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	heapFile = memFile
	return f()
}

var heapFile string

// heap writes the heap profile, if it was asked for.
func heap() {
	if heapFile == "" {
		return
	}
	w, err := os.Create(heapFile)
	if err != nil {
		fatal(err)
	}
	defer w.Close()
	if err := pprof.Lookup("heap").WriteTo(w, 0); err != nil {
		fatal(err)
	}
}

func names() (out []string) {
	for name := range sections {
		out = append(out, name)
	}
	sort.Strings(out)
	return out
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "bench:", err)
	os.Exit(1)
}

func row(what string, format string, args ...any) {
	fmt.Printf("  %-46s %s\n", what, fmt.Sprintf(format, args...))
}

// cpu is the processor time of this process so far, user and system.
func cpu() time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// rss is the resident memory of this process in MiB.
func rss() float64 {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	var size, resident int
	if _, err := fmt.Sscan(string(b), &size, &resident); err != nil {
		return 0
	}
	return float64(resident) * float64(os.Getpagesize()) / (1 << 20)
}

func percentile(sorted []time.Duration, p float64) time.Duration {
	return sorted[min(len(sorted)-1, int(p*float64(len(sorted))))]
}
