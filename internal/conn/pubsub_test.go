package conn

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestPubSubFull(t *testing.T) {
	for _, row := range []struct{ project, name, want, err string }{
		{"acme-billing", "invoices", "projects/acme-billing/topics/invoices", ""},
		{"", "projects/other-project/topics/invoices", "projects/other-project/topics/invoices", ""},
		{"acme-billing", "projects/other-project/topics/invoices", "projects/other-project/topics/invoices", ""},
		{"acme-billing", "projects/other-project/subscriptions/invoices", "", `"projects/other-project/subscriptions/invoices" is not the name of a topic: write its id, or projects/PROJECT/topics/ID`},
		{"acme-billing", "a/b", "", `"a/b" is not the name of a topic: write its id, or projects/PROJECT/topics/ID`},
		{"acme-billing", "goog-things", "", `"goog-things" is not the name of a topic: 3 to 255 of A-Z a-z 0-9 . _ ~ + % -, beginning with a letter, not with goog`},
		{"", "invoices", "", "in which project? write project, or projects/PROJECT/topics/invoices"},
	} {
		c := PubSub{Project: row.project}
		got, err := c.Full("topics", row.name)
		if got != row.want || err == nil != (row.err == "") || err != nil && err.Error() != row.err {
			t.Errorf("%q in %q: %q, %v; want %q, %q", row.name, row.project, got, err, row.want, row.err)
		}
	}
}

func TestPubSubValidate(t *testing.T) {
	for _, row := range []struct {
		change func(*PubSub)
		want   string
	}{
		{func(*PubSub) {}, ""},
		{func(c *PubSub) { c.Project = "X" }, `project: "X" is not the id of a project: 6 to 30 of a-z 0-9 -, beginning with a letter`},
		{func(c *PubSub) { c.Endpoint = "https://x:1" }, "endpoint: it is not an address: write host:port, such as europe-west1-pubsub.googleapis.com:443"},
		{func(c *PubSub) { c.Insecure = true }, "insecure: is for an emulator: write its endpoint"},
		{func(c *PubSub) { c.Endpoint, c.Insecure, c.CredentialsFile = "x:1", true, "y" }, "credentials_file: is not sent with insecure: true"},
		{func(c *PubSub) { c.Endpoint, c.Insecure, c.TLS = "x:1", true, &TLS{} }, "tls: does not go with insecure: true"},
		{func(c *PubSub) { c.RequestTimeout = 1 }, "request_timeout: 1ns is out of range: 1s to 1m"},
	} {
		c := DefaultPubSub()
		row.change(&c)
		got := ""
		if err := c.Validate(); err != nil {
			got = err.Error()
		}
		if got != row.want {
			t.Errorf("%q, want %q", got, row.want)
		}
	}
}

func TestPubSubClass(t *testing.T) {
	for _, row := range []struct {
		err  error
		want Class
	}{
		{status.Error(codes.NotFound, "x"), Missing},
		{status.Error(codes.PermissionDenied, "x"), Auth},
		{status.Error(codes.Unauthenticated, "x"), Auth},
		{status.Error(codes.ResourceExhausted, "x"), Throttle},
		{status.Error(codes.Unavailable, "x"), Network},
		{status.Error(codes.Unavailable, "connection error: transport: authentication handshake failed: tls: failed to verify certificate"), Auth},
		{status.Error(codes.DeadlineExceeded, "x"), Network},
		{status.Error(codes.Internal, "x"), Other},
		{context.DeadlineExceeded, Network},
		{errors.New("x"), Other},
	} {
		if got := ClassOf(PubSubErr("s", "do", row.err)); got != row.want {
			t.Errorf("class of %v is %s, want %s", row.err, got, row.want)
		}
	}
	if PubSubErr("s", "do", nil) != nil {
		t.Error("nil is an error")
	}
}

// What a server of tokens says is not repeated, since it was sent secrets.
func TestPubSubTokens(t *testing.T) {
	code := 200
	tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		said := map[string]any{"error": r.Form.Get("refresh_token"), "error_description": r.Form.Encode()}
		if code == 200 {
			said = map[string]any{"access_token": "ya29", "token_type": "Bearer", "expires_in": 1}
		}
		_ = json.NewEncoder(w).Encode(said)
	}))
	defer tokens.Close()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write := func(v any) string {
		path := filepath.Join(t.TempDir(), "credentials.json")
		b, err := json.Marshal(v)
		if err == nil {
			err = os.WriteFile(path, b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	account := write(map[string]string{"type": "service_account", "client_email": "m@example.com", "token_uri": tokens.URL,
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))})
	b, err := readCredentials(account)
	if err != nil {
		t.Fatal(err)
	}
	token := &pubsubToken{timeout: 30 * time.Second, json: b}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if got, err := token.GetRequestMetadata(ctx); err != nil || got["authorization"] != "Bearer ya29" {
		t.Errorf("%v, %v", got, err)
	}
	for status, want := range map[int]Class{400: Auth, 401: Auth, 503: Network} {
		code = status
		_, err := token.GetRequestMetadata(ctx)
		if err == nil || strings.Contains(err.Error(), "assertion") || pubsubClass(err) != want {
			t.Errorf("%d: %v, want class %s", status, err, want)
		}
	}
	gone, over := context.WithCancel(ctx)
	over()
	if _, err := token.GetRequestMetadata(gone); err == nil && code != 200 {
		t.Error("no error although the context had ended")
	}

	for name, row := range map[string]struct {
		v    any
		want string
	}{
		"no object": {"hush hush", "it is not a JSON file of credentials"},
		"a type":    {map[string]string{"type": "gdch_service_account"}, "its type is none of"},
		"no type":   {map[string]string{"client_secret": "hush hush"}, "its type is none of"},
	} {
		c := DefaultPubSub()
		c.CredentialsFile = write(row.v)
		if _, err := c.Open(); err == nil || !strings.Contains(err.Error(), row.want) || strings.Contains(err.Error(), "hush") {
			t.Errorf("%s: %v, want %q", name, err, row.want)
		}
	}
	c := DefaultPubSub()
	c.CredentialsFile = filepath.Join(t.TempDir(), "none")
	if _, err := c.Open(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if got := fmt.Sprint(hideCredentials([]byte(`{"a":{"client_secret":"abcdefghij"}}`)).Text("an abcdefghij")); got != "an <secret>" {
		t.Error(got)
	}
}
