package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// listenHint adds to an error of a listener what to do about it. flag names its address.
func listenHint(err error, flag string) error {
	hint := ""
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.EADDRINUSE):
		hint = "something else listens there, another lag-monitor perhaps: end it, or name another address with " + flag
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		hint = "this host has no such address: name another with " + flag + ", or :PORT for all"
	case errors.Is(err, syscall.EACCES):
		hint = "ports below 1024 need a privilege: name a higher one with " + flag
	default:
		return err
	}
	return fmt.Errorf("%w; %s", err, hint)
}

// configHint adds to an error of loading a configuration what to do about it, where the file itself cannot be
// read.
func configHint(err error, file string) error {
	if err == nil {
		return nil
	}
	f, cannot := os.Open(file)
	switch {
	case cannot == nil:
		_ = f.Close()
		return err
	case errors.Is(cannot, fs.ErrNotExist):
		return fmt.Errorf("%w; name the file with --config.file", err)
	case errors.Is(cannot, fs.ErrPermission):
		return fmt.Errorf("%w; this process runs as user %d: let that user read the file, and enter its folders", err, os.Getuid())
	}
	return err
}
