package conn

import (
	"crypto/tls"
	"errors"

	promconfig "github.com/prometheus/common/config"
)

// TLS is the `tls:` block of every transport. A nil *TLS means a plain connection, except where the
// address itself asks for TLS (https, tls, rediss, …).
type TLS struct {
	CAFile             string `yaml:"ca_file,omitempty"`   // PEM; default: the system's roots
	CertFile           string `yaml:"cert_file,omitempty"` // client certificate, PEM
	KeyFile            string `yaml:"key_file,omitempty"`
	ServerName         string `yaml:"server_name,omitempty"`
	InsecureSkipVerify bool   `yaml:"insecure_skip_verify,omitempty"`
}

// Validate reports a certificate without its key and the other way round.
func (t *TLS) Validate() error {
	if t == nil {
		return nil
	}
	if (t.CertFile == "") != (t.KeyFile == "") {
		return errors.New("cert_file and key_file go together")
	}
	return nil
}

// Config reads the files. It returns nil for a nil receiver. Client certificates are read anew at
// each handshake, so a rotated one needs no reload.
func (t *TLS) Config() (*tls.Config, error) {
	if t == nil {
		return nil, nil
	}
	return promconfig.NewTLSConfig(&promconfig.TLSConfig{
		CAFile: t.CAFile, CertFile: t.CertFile, KeyFile: t.KeyFile,
		ServerName: t.ServerName, InsecureSkipVerify: t.InsecureSkipVerify,
	})
}
