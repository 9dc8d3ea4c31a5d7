package conn

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
)

// maxSecret bounds the file of a secret, which could be a device that never ends.
const maxSecret = 64 << 10

// Secret names where a secret is kept: `{file: /path}` or `{env: NAME}`. The value itself is never
// part of a configuration, so it cannot leak from one into an error, a log, a page or an answer.
type Secret struct {
	File string `yaml:"file,omitempty"`
	Env  string `yaml:"env,omitempty"`
}

// IsZero reports that no secret is configured.
func (s Secret) IsZero() bool { return s == Secret{} }

// UnmarshalYAML refuses a plain string with a text that does not repeat it.
func (s *Secret) UnmarshalYAML(unmarshal func(any) error) error {
	type plain Secret
	var text string
	if err := unmarshal(&text); err == nil {
		return errors.New("a secret is not written into the file: use {file: PATH} or {env: NAME}")
	}
	return unmarshal((*plain)(s))
}

// Validate checks that exactly one source is named.
func (s Secret) Validate() error {
	if (s.File == "") == (s.Env == "") {
		return errors.New("a secret has one source: {file: PATH} or {env: NAME}")
	}
	return nil
}

// Read fetches the secret, without one final newline. Files are read at each call, so a rotated
// secret is seen by the next connection. The error names the source, never the value.
func (s Secret) Read() (string, error) {
	if err := s.Validate(); err != nil {
		return "", err
	}
	if s.Env != "" {
		v, ok := os.LookupEnv(s.Env)
		if !ok {
			return "", fmt.Errorf("environment variable %s is not set", s.Env)
		}
		return v, nil
	}
	f, err := os.Open(s.File)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err != nil {
		return "", err
	}
	if len(b) > maxSecret {
		return "", fmt.Errorf("secret file %s is longer than %d bytes", s.File, maxSecret)
	}
	b = bytes.TrimSuffix(bytes.TrimSuffix(b, []byte("\n")), []byte("\r"))
	if len(b) == 0 {
		return "", fmt.Errorf("secret file %s is empty", s.File)
	}
	return string(b), nil
}
