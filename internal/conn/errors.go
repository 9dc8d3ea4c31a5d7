package conn

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"syscall"
)

// A FieldError says which key of a configuration is wrong. Path is the key's path below the value
// that is being validated, with dots, for example "tls.ca_file"; the config package turns it into a
// file and a line.
type FieldError struct {
	Path string
	Err  error
}

func (e *FieldError) Error() string { return e.Path + ": " + e.Err.Error() }
func (e *FieldError) Unwrap() error { return e.Err }

// Field returns a FieldError. The text says what is valid, not only what is wrong.
func Field(path, format string, args ...any) error {
	return &FieldError{Path: path, Err: fmt.Errorf(format, args...)}
}

// Prefix puts a key in front of the path of every FieldError in err, and makes a FieldError of any
// other error. It returns nil for nil.
func Prefix(path string, err error) error {
	if err == nil {
		return nil
	}
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		var out []error
		for _, e := range many.Unwrap() {
			out = append(out, Prefix(path, e))
		}
		return errors.Join(out...)
	}
	if f, ok := err.(*FieldError); ok {
		return &FieldError{Path: path + "." + f.Path, Err: f.Err}
	}
	return &FieldError{Path: path, Err: err}
}

// Class is a coarse reason for an error on a connection: the value of the label `class` of
// lag_monitor_sink_errors_total.
type Class string

// The classes. Missing means that the topic, stream or queue does not exist; Throttle that the
// broker asks for fewer requests.
const (
	Auth     Class = "auth"
	Network  Class = "network"
	Throttle Class = "throttle"
	Missing  Class = "missing"
	Other    Class = "other"
)

// Classes lists all of them, for metrics that exist at zero.
func Classes() []Class { return []Class{Auth, Network, Throttle, Missing, Other} }

type classified struct {
	class Class
	error
}

func (c *classified) Unwrap() error { return c.error }

// WithClass marks err with a class. It returns nil for nil.
func WithClass(class Class, err error) error {
	if err == nil {
		return nil
	}
	return &classified{class, err}
}

// ClassOf returns the class that a driver gave the error, and else guesses from the error's type:
// network for what the net package, a deadline or a closed connection says, auth for certificates.
func ClassOf(err error) Class {
	var c *classified
	if errors.As(err, &c) {
		return c.class
	}
	var (
		verify   *tls.CertificateVerificationError
		unknown  x509.UnknownAuthorityError
		hostname x509.HostnameError
	)
	if errors.As(err, &verify) || errors.As(err, &unknown) || errors.As(err, &hostname) {
		return Auth
	}
	var ne net.Error
	var errno syscall.Errno
	var file *fs.PathError
	switch {
	case errors.As(err, &file):
		return Other // a key or certificate that cannot be read; its errno would pass for a net.Error
	case errors.As(err, &ne), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF),
		errors.Is(err, net.ErrClosed), errors.Is(err, context.DeadlineExceeded):
		return Network
	case errors.As(err, &errno):
		return Network
	}
	return Other
}
