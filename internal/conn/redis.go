package conn

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// Redis says how to reach a Redis (or Valkey) server, a master behind sentinels, or a cluster.
type Redis struct {
	// Addresses are host:port: of the server, of the sentinels, or of some nodes of the cluster.
	Addresses []string `yaml:"addresses"`
	// Master is the name under which the sentinels know the master.
	Master string `yaml:"master,omitempty"`
	// Cluster says that the addresses are those of a cluster.
	Cluster bool `yaml:"cluster,omitempty"`
	// DB is the number of the database.
	DB int `yaml:"db,omitempty"`
	// Username and Password log in; a server without users takes a password alone.
	Username string `yaml:"username,omitempty"`
	Password Secret `yaml:"password,omitempty"`
	// TLS encrypts.
	TLS *TLS `yaml:"tls,omitempty"`
	// Timeout bounds connecting, and each answer.
	Timeout Duration `yaml:"timeout,omitempty"`
}

// NewRedis returns the defaults.
func NewRedis() Redis { return Redis{Timeout: Duration(5 * time.Second)} }

const (
	minRedisTimeout = time.Second // commands wait for something to come for half of that
	maxRedisTimeout = 20 * time.Second
)

// quietRedis keeps the client's words out of the log: what it writes there it returns as an error, too. It has one
// logger for the whole process.
var quietRedis = sync.OnceFunc(func() { redis.SetLogger(silence{}) })

type silence struct{}

func (silence) Printf(context.Context, string, ...any) {}

// Validate reports every mistake as a FieldError.
func (c *Redis) Validate() error {
	var errs []error
	if len(c.Addresses) == 0 {
		errs = append(errs, Field("addresses", "is required: a list such as [redis:6379]"))
	}
	for i, a := range c.Addresses {
		if host, port, err := net.SplitHostPort(a); err != nil || host == "" || port == "" {
			errs = append(errs, Field(fmt.Sprintf("addresses[%d]", i), "%q is not of the form host:port", a))
		}
	}
	switch {
	case c.Master != "" && c.Cluster:
		errs = append(errs, Field("master", "cannot be combined with cluster: true"))
	case c.Master == "" && !c.Cluster && len(c.Addresses) > 1:
		errs = append(errs, Field("addresses", "several addresses are those of sentinels, with master, or of a cluster, with cluster: true"))
	}
	if c.DB < 0 || c.Cluster && c.DB != 0 {
		errs = append(errs, Field("db", "is 0 or more, and a cluster has only 0"))
	}
	if !c.Password.IsZero() {
		errs = append(errs, Prefix("password", c.Password.Validate()))
	} else if c.Username != "" {
		errs = append(errs, Field("password", "username needs a password"))
	}
	if c.Timeout < Duration(minRedisTimeout) || c.Timeout > Duration(maxRedisTimeout) {
		errs = append(errs, Field("timeout", "is between %s and %s", minRedisTimeout, maxRedisTimeout))
	}
	return errors.Join(append(errs, Prefix("tls", c.TLS.Validate()))...)
}

// Client returns a client of its own pool, which connects with the first command. It tries everything once.
func (c *Redis) Client() (redis.UniversalClient, error) {
	quietRedis()
	tls, err := c.TLS.Config()
	if err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	timeout := time.Duration(c.Timeout)
	o := &redis.UniversalOptions{
		Addrs: c.Addresses, MasterName: c.Master, IsClusterMode: c.Cluster, DB: c.DB, ClientName: UserAgent, TLSConfig: tls,
		Protocol: 2, DisableIdentity: true, ContextTimeoutEnabled: true,
		MaxRetries: -1, DialerRetries: 1, PoolSize: 4, DialTimeout: timeout, ReadTimeout: timeout, WriteTimeout: timeout, PoolTimeout: timeout,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
		// Read for each connection: a changed password needs no reload.
		CredentialsProviderContext: func(context.Context) (string, string, error) {
			if c.Password.IsZero() {
				return "", "", nil
			}
			password, err := c.Password.Read()
			if err != nil {
				return "", "", WithClass(Auth, fmt.Errorf("password: %w", err))
			}
			return c.Username, password, nil
		},
	}
	return redis.NewUniversalClient(o), nil
}

// RedisError gives an answer of the server its class. It returns nil for nil.
func RedisError(err error) error {
	var said redis.Error
	if err == nil || !errors.As(err, &said) {
		if errors.Is(err, redis.ErrPoolTimeout) {
			return WithClass(Network, err)
		}
		return err
	}
	word, _, _ := strings.Cut(said.Error(), " ")
	switch word {
	case "NOAUTH", "WRONGPASS", "NOPERM", "DENIED":
		return WithClass(Auth, err)
	case "LOADING", "MASTERDOWN", "CLUSTERDOWN", "READONLY", "TRYAGAIN", "MOVED", "ASK", "UNBLOCKED":
		return WithClass(Network, err)
	case "OOM", "BUSY", "NOREPLICAS":
		return WithClass(Throttle, err)
	}
	if strings.Contains(said.Error(), "max number of clients") {
		return WithClass(Throttle, err)
	}
	return WithClass(Other, err)
}

// RedisSaid reports whether the error is an answer of the server, or came before anything could be sent:
// the command was certainly not carried out.
func RedisSaid(err error) bool {
	var said redis.Error
	var op *net.OpError
	return errors.As(err, &said) || errors.As(err, &op) && op.Op == "dial" || errors.Is(err, redis.ErrPoolTimeout)
}
