package conn_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kinesis"

	"github.com/lag-monitor/lag-monitor/internal/conn"
)

// isolate hides the account of whoever runs the tests.
func isolate(t *testing.T) {
	for _, name := range []string{"AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
		"AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CA_BUNDLE", "AWS_ENDPOINT_URL"} {
		t.Setenv(name, "")
		os.Unsetenv(name)
	}
	t.Setenv("AWS_CONFIG_FILE", filepath.Join(t.TempDir(), "config"))
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", filepath.Join(t.TempDir(), "credentials"))
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
}

// service is an endpoint that notes its requests.
type service struct {
	*httptest.Server
	mu     sync.Mutex
	header []http.Header
	body   []string
}

func newService(t *testing.T, answer string) *service {
	s := &service{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.header, s.body = append(s.header, r.Header), append(s.body, string(b))
		_, _ = io.WriteString(w, answer)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *service) last(t *testing.T) (http.Header, string) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.header) == 0 {
		t.Fatal("nobody asked")
	}
	return s.header[len(s.header)-1], s.body[len(s.body)-1]
}

func secretFile(t *testing.T, value string) (path string) {
	path = filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(value+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func list(t *testing.T, k *conn.Kinesis) (sent bool, err error) {
	t.Helper()
	client, err := k.OpenClient()
	if err != nil {
		t.Fatal(err)
	}
	defer client.CloseIdle()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	ctx, flag := conn.TrackSent(ctx)
	_, err = client.ListShards(ctx, &kinesis.ListShardsInput{StreamName: aws.String("s")})
	return flag.Load(), err
}

func TestAWSStaticKeys(t *testing.T) {
	isolate(t)
	s := newService(t, `{"Shards":[]}`)
	k := conn.DefaultKinesis()
	k.StreamARN = "arn:aws:kinesis:eu-north-1:123456789012:stream/s"
	k.Endpoint = s.URL
	k.AccessKeyID = conn.Secret{File: secretFile(t, "AKIDSTATIC")}
	k.SecretAccessKey = conn.Secret{File: secretFile(t, "very-secret")}
	k.SessionToken = conn.Secret{File: secretFile(t, "a-token")}
	if err := k.Validate(); err != nil {
		t.Fatal(err)
	}
	sent, err := list(t, &k)
	if err != nil || !sent {
		t.Fatalf("%v, sent %t", err, sent)
	}
	h, _ := s.last(t)
	if auth := h.Get("Authorization"); !strings.Contains(auth, "AKIDSTATIC/") || !strings.Contains(auth, "/eu-north-1/kinesis/") {
		t.Errorf("signed as %q", auth)
	}
	if h.Get("X-Amz-Security-Token") != "a-token" {
		t.Error("the session token is not used")
	}

	// A secret that cannot be read is a matter of access, and stops the request before it leaves.
	k.SecretAccessKey = conn.Secret{File: filepath.Join(t.TempDir(), "nothing")}
	sent, err = list(t, &k)
	if err == nil || sent || conn.ClassOf(err) != conn.Auth || !strings.Contains(err.Error(), "secret_access_key") {
		t.Errorf("%v, class %s, sent %t", err, conn.ClassOf(err), sent)
	}
	if err != nil && (strings.Contains(err.Error(), "a-token") || strings.Contains(err.Error(), "AKIDSTATIC")) {
		t.Errorf("a secret is in the error: %v", err)
	}
}

func TestAWSAssumesARole(t *testing.T) {
	isolate(t)
	sts := newService(t, `<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><Credentials>
		<AccessKeyId>AKIDROLE</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>role-token</SessionToken>
		<Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>`)
	t.Setenv("AWS_ENDPOINT_URL_STS", sts.URL)
	s := newService(t, `{"Shards":[]}`)
	k := conn.DefaultKinesis()
	k.Stream, k.Region, k.Endpoint = "s", "eu-west-1", s.URL
	t.Setenv("LAG_MONITOR_TEST_AWS_ID", "AKIDBASE")
	k.AccessKeyID, k.SecretAccessKey = conn.Secret{Env: "LAG_MONITOR_TEST_AWS_ID"}, conn.Secret{Env: "LAG_MONITOR_TEST_AWS_ID"}
	k.RoleARN, k.ExternalID = "arn:aws:iam::123456789012:role/monitor", "outside"
	if _, err := list(t, &k); err != nil {
		t.Fatal(err)
	}
	h, body := sts.last(t)
	form, err := url.ParseQuery(body)
	if err != nil || form.Get("RoleArn") != k.RoleARN || form.Get("ExternalId") != "outside" {
		t.Errorf("asked for %v, %v", form, err)
	}
	if !strings.Contains(h.Get("Authorization"), "AKIDBASE/") {
		t.Error("the role was not asked for with the static keys")
	}
	if h, _ := s.last(t); !strings.Contains(h.Get("Authorization"), "AKIDROLE/") || h.Get("X-Amz-Security-Token") != "role-token" {
		t.Errorf("signed as %q", h.Get("Authorization"))
	}

	// What was sent to get credentials is not what was to be sent.
	sts.Config.Handler = http.NotFoundHandler()
	sent, err := list(t, &k)
	if err == nil || sent || conn.ClassOf(err) != conn.Auth {
		t.Errorf("a role that is refused: %v, class %s, sent %t", err, conn.ClassOf(err), sent)
	}
}

// TestAWSRotatedKeys lets a service call the first key expired: the request after that one has to be signed with
// what the files have then, also where a role was assumed with it, but keys that stay wrong are not
// asked for again and again.
func TestAWSRotatedKeys(t *testing.T) {
	for _, role := range []string{"", "arn:aws:iam::123456789012:role/monitor"} {
		isolate(t)
		var mu sync.Mutex
		asked, next := 0, "AKIDNEXT"
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			_, key, _ := strings.Cut(r.Header.Get("Authorization"), "Credential=")
			key, _, _ = strings.Cut(key, "/")
			if r.Header.Get("X-Amz-Target") == "" {
				asked++
				// The role's key bears the name of the one that it was asked for with.
				_, _ = io.WriteString(w, `<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><Credentials>
					<AccessKeyId>`+key+`</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>role-token</SessionToken>
					<Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>`)
				return
			}
			if key != next {
				w.WriteHeader(http.StatusBadRequest)
				_, _ = io.WriteString(w, `{"__type":"ExpiredTokenException","message":"expired"}`)
				return
			}
			_, _ = io.WriteString(w, `{"Shards":[]}`)
		}))
		t.Setenv("AWS_ENDPOINT_URL_STS", server.URL)
		k := conn.DefaultKinesis()
		k.Stream, k.Region, k.Endpoint, k.RoleARN = "s", "eu-west-1", server.URL, role
		id := secretFile(t, "AKIDFIRST")
		k.AccessKeyID, k.SecretAccessKey = conn.Secret{File: id}, conn.Secret{File: secretFile(t, "s")}
		client, err := k.OpenClient()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := k.ListShards(t.Context(), client, true); conn.ClassOf(err) != conn.Auth {
			t.Errorf("the first key: %v", err)
		}
		if err := os.WriteFile(id, []byte("AKIDNEXT"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := k.ListShards(t.Context(), client, true); err != nil {
			t.Errorf("the next key: %v", err)
		}
		mu.Lock()
		next = "another one"
		before := asked
		mu.Unlock()
		for range 10 {
			if _, err := k.ListShards(t.Context(), client, true); conn.ClassOf(err) != conn.Auth {
				t.Errorf("a key that stays wrong: %v", err)
			}
		}
		mu.Lock()
		if asked > before+1 { // one, should ten requests take 5 s
			t.Errorf("the role was asked for %d times more", asked-before)
		}
		mu.Unlock()
		client.CloseIdle()
		server.Close()
	}
}

func TestAWSRegion(t *testing.T) {
	isolate(t)
	a := conn.DefaultAWS()
	if _, _, err := a.Open(""); err == nil || !strings.Contains(err.Error(), "AWS_REGION") {
		t.Errorf("without a region: %v", err)
	}
	for _, c := range []struct{ configured, arn, env, want string }{
		{"eu-west-1", "arn:aws:kinesis:eu-north-1:1:stream/s", "us-east-1", "eu-west-1"},
		{"", "arn:aws:kinesis:eu-north-1:1:stream/s", "us-east-1", "eu-north-1"},
		{"", "", "us-east-1", "us-east-1"},
	} {
		t.Setenv("AWS_REGION", c.env)
		a := conn.DefaultAWS()
		a.Region = c.configured
		if cfg, _, err := a.Open(c.arn); err != nil || cfg.Region != c.want {
			t.Errorf("%+v: region %q, %v", c, cfg.Region, err)
		}
	}
}

func TestShardNumber(t *testing.T) {
	for id, want := range map[string]uint32{"shardId-000000000000": 0, "shardId-000000000012": 12, "shardId-004294967295": 4294967295} {
		if n, err := conn.ShardNumber(id); err != nil || n != want {
			t.Errorf("%s: %d, %v", id, n, err)
		}
	}
	for _, id := range []string{"", "12", "shardId-", "shardId-x", "shardId-004294967296"} {
		if n, err := conn.ShardNumber(id); err == nil {
			t.Errorf("%q has the number %d", id, n)
		}
	}
}
