package conn

import (
	"errors"
	"io/fs"
	"strings"
	"syscall"
)

// FilePath reports what is wrong with the path of a file, which may not exist yet.
func FilePath(path string) error {
	switch {
	case path == "":
		return errors.New("is required")
	case strings.HasSuffix(path, "/"):
		return errors.New("names a directory: it must name a file")
	}
	return nil
}

// FileError marks an error of a file that is one end of a pipeline with its class: missing when it does not
// exist, auth when it must not be opened. It returns nil for nil.
func FileError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.EISDIR), errors.Is(err, syscall.ENOTDIR):
		return WithClass(Missing, err)
	case errors.Is(err, fs.ErrPermission):
		return WithClass(Auth, err)
	}
	return WithClass(Other, err)
}
