package servers

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"hash"
	"math/big"
	"net"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
)

// TLSFiles are PEM files made for one test by a certificate authority of its own.
type TLSFiles struct {
	CA         string // what a client has to trust
	ClientCert string // a client certificate from the same authority
	ClientKey  string
	ServerCert string // for 127.0.0.1 and localhost
	ServerKey  string

	serverPEM string // key and certificate in one file, as Kafka wants them
}

func makeTLS(t testing.TB, dir string) TLSFiles {
	t.Helper()
	serial := int64(0)
	issue := func(name string, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey, string, string) {
		serial++
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		cert := &x509.Certificate{
			SerialNumber: big.NewInt(serial),
			Subject:      pkix.Name{CommonName: name},
			NotBefore:    time.Now().Add(-time.Hour),
			NotAfter:     time.Now().Add(24 * time.Hour),
			KeyUsage:     x509.KeyUsageDigitalSignature,
			ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
			IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
			DNSNames:     []string{"localhost"},
		}
		if parent == nil {
			cert.IsCA, cert.BasicConstraintsValid, cert.KeyUsage, cert.ExtKeyUsage = true, true, x509.KeyUsageCertSign, nil
			cert.IPAddresses, cert.DNSNames = nil, nil
			parent, parentKey = cert, key
		}
		der, err := x509.CreateCertificate(rand.Reader, cert, parent, &key.PublicKey, parentKey)
		if err != nil {
			t.Fatal(err)
		}
		keyDER, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return cert, key, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
			string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))
	}
	ca, caKey, caPEM, _ := issue("lag-monitor test authority", nil, nil)
	_, _, serverCert, serverKey := issue("127.0.0.1", ca, caKey)
	_, _, clientCert, clientKey := issue(KafkaUser, ca, caKey)
	return TLSFiles{
		CA:         writeFile(t, dir, "ca.pem", caPEM),
		ClientCert: writeFile(t, dir, "client.pem", clientCert),
		ClientKey:  writeFile(t, dir, "client.key", clientKey),
		ServerCert: writeFile(t, dir, "server.pem", serverCert),
		ServerKey:  writeFile(t, dir, "server.key", serverKey),
		serverPEM:  writeFile(t, dir, "server-both.pem", serverKey+serverCert),
	}
}

// scramCredentials is what a broker stores about KafkaUser: the salted password (RFC 5802), never the plain one.
func scramCredentials(m kafka.ScramMechanism, password string) (kafka.UserScramCredentialsUpsertion, error) {
	const iterations = 4096 // the least that Kafka accepts
	newHash, size := func() hash.Hash { return sha256.New() }, sha256.Size
	if m == kafka.ScramMechanismSha512 {
		newHash, size = func() hash.Hash { return sha512.New() }, sha512.Size
	}
	salt := make([]byte, 16)
	rand.Read(salt)
	salted, err := pbkdf2.Key(newHash, password, salt, iterations, size)
	return kafka.UserScramCredentialsUpsertion{
		Name: KafkaUser, Mechanism: m, Iterations: iterations, Salt: salt, SaltedPassword: salted,
	}, err
}
