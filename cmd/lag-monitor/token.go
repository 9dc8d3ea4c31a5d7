package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/alecthomas/kingpin/v2"

	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
	"github.com/lag-monitor/lag-monitor/internal/token"
)

const tokenHelp = `Say what a heartbeat is and whether it is genuine.

It takes what was copied out of a log, a queue or a console, as an argument or from the standard input, and finds every heartbeat in it: in JSON, a header, an URL, base64 (as the AWS console and command line show records), gzip.

  lag-monitor token '~lagmon1.orders.AEW…'
  lag-monitor token --key-file=/etc/lag-monitor/key < message.json
  aws kinesis get-records --shard-iterator "$i" | lag-monitor token --json

Exit codes: 0 all are genuine; 1 at least one is not, or there is none; 2 the flags are wrong. A heartbeat that is signed cannot be told to be genuine without --key-file.`

// maxToken bounds what is read.
const maxToken = 16 << 20

func addToken(app *kingpin.Application, env *environment) (string, func() error) {
	c := app.Command("token", tokenHelp)
	text := c.Arg("text", "What holds the heartbeats. Default: the standard input.").String()
	keyFiles := c.Flag("key-file", "A file with a key that signs heartbeats, as global.key names it; may be repeated.").PlaceHolder("FILE").Strings()
	asJSON := c.Flag("json", "Write a JSON object a line. Durations are in seconds.").Bool()
	return c.FullCommand(), func() error {
		var keys [][]byte
		for _, f := range *keyFiles {
			v, err := conn.Secret{File: f}.Read()
			if err != nil {
				return usageError{fmt.Errorf("--key-file: %w", err)}
			}
			keys = append(keys, []byte(v))
		}
		input := []byte(*text)
		if *text == "" || *text == "-" {
			var err error
			if input, err = io.ReadAll(io.LimitReader(os.Stdin, maxToken)); err != nil {
				return fmt.Errorf("standard input: %w", err)
			}
		}
		found := token.Find(input, heartbeat.NewKeyring(keys...))
		if len(found) == 0 {
			return fmt.Errorf("there is no heartbeat in it (one begins with %q)", heartbeat.Magic)
		}
		bad := 0
		for i := range found {
			if found[i].Problem != nil {
				bad++
			}
			if *asJSON {
				if err := found[i].JSON(env.stdout); err != nil {
					return err
				}
				continue
			}
			if i > 0 {
				fmt.Fprintln(env.stdout)
			}
			found[i].Text(env.stdout, time.Now())
		}
		if bad > 0 {
			return errSilent
		}
		return nil
	}
}
