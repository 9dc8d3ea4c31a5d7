// Package servers starts the real servers that tests run against: Apache Kafka, a local Kinesis, NATS
// JetStream, Prometheus and Alertmanager, and beside them a Slack webhook, a receiver of traces and a TCP
// proxy with faults.
//
// It holds no test of the program and nothing the program uses; only tests import it. What it starts
// listens on 127.0.0.1 at ports chosen at run time, keeps its data in t.TempDir and is gone when the
// test is over, also when the test binary is killed. install.sh puts the servers in place.
//
// A server's handle belongs to the goroutine of the test that started it: its methods report failure
// through testing.TB.Fatal, and they are not safe for concurrent use unless they say so. A test that
// looks for leaked goroutines has to do so in a t.Cleanup that it registers before it starts a server.
package servers
