package servers

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws/protocol/eventstream"
)

// throttled is the error type of a shard whose limits are exceeded.
const throttled = "ProvisionedThroughputExceededException"

// KinesisFault is one way in which calls go wrong. The first of Lost, Hang and Status that is set counts.
type KinesisFault struct {
	Operation string // such as GetRecords
	Times     int    // how many calls, from the next one on
	Lost      bool   // the server does what it was asked, but the connection ends before the answer
	Hang      bool   // no answer until the client gives up
	Status    int    // HTTP status of the answer
	Type      string // error type of the answer; without one the body is plain text
}

// KinesisProxy passes Kinesis' JSON protocol on to a server, adds what that one leaves out (the first
// frame of a subscription, the read limit) and lets calls go wrong. Its methods are safe for concurrent use.
type KinesisProxy struct {
	Endpoint string // URL for clients, plain HTTP

	proxy *httputil.ReverseProxy
	done  chan struct{} // closed when the test is over

	mu        sync.Mutex
	calls     map[string]int
	faults    []KinesisFault
	reject    int
	limit     bool
	key       string      // see Accept
	writes    []time.Time // see LimitWrites: those of the last second
	mostPuts  int         // a second; 0: no limit
	swallow   int         // see Swallow; 0: none
	puts      int         // that were let through since Swallow
	swallowed [][]byte
	reads     map[string][]time.Time // per shard, those of the last second
	iterators map[string]string      // shard of each iterator that was handed out
	expired   map[string]bool
	subs      map[*subscription]struct{}
}

func newKinesisProxy(t testing.TB, upstream string) *KinesisProxy {
	t.Helper()
	target, err := url.Parse(upstream)
	if err != nil {
		t.Fatal(err)
	}
	p := &KinesisProxy{
		done: make(chan struct{}), calls: map[string]int{}, reads: map[string][]time.Time{},
		iterators: map[string]string{}, expired: map[string]bool{}, subs: map[*subscription]struct{}{},
	}
	transport := &http.Transport{MaxIdleConnsPerHost: 100}
	p.proxy = &httputil.ReverseProxy{
		Transport:      transport,
		ErrorLog:       log.New(io.Discard, "", 0), // broken streams are the test's doing
		FlushInterval:  -1,
		Rewrite:        func(r *httputil.ProxyRequest) { r.SetURL(target) },
		ModifyResponse: p.modify,
		// A server that is down shows as a broken connection, not as an answer of its own.
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
	server := httptest.NewUnstartedServer(p)
	server.Config.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		return context.WithValue(ctx, clientConn{}, c)
	}
	server.Start()
	p.Endpoint = server.URL
	t.Cleanup(func() {
		close(p.done)
		p.CutSubscriptions()
		server.CloseClientConnections()
		server.Close()
		transport.CloseIdleConnections()
	})
	return p
}

// Inject lets calls go wrong. Faults of the same operation take effect one after the other.
func (p *KinesisProxy) Inject(f KinesisFault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults = append(p.faults, f)
}

// Throttle answers the next n calls of an operation as a shard does whose limits are exceeded.
func (p *KinesisProxy) Throttle(operation string, n int) {
	p.Inject(KinesisFault{Operation: operation, Times: n, Status: http.StatusBadRequest, Type: throttled})
}

// RejectRecords throttles the next n records inside PutRecords calls, which succeed for the others.
func (p *KinesisProxy) RejectRecords(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reject += n
}

// Heal takes all injected faults back. It does not bring expired iterators or ended subscriptions back.
func (p *KinesisProxy) Heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults, p.reject, p.limit, p.key = nil, 0, false, ""
	p.mostPuts, p.swallow = 0, 0
}

// Accept lets only calls through that are signed with an access key of this id; credentials of any other
// count as expired. The empty id accepts all. Subscriptions that are open stay so, as in the service.
func (p *KinesisProxy) Accept(accessKey string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.key = accessKey
}

// LimitReads enforces, or stops to enforce, the service's limit of five GetRecords a second and shard.
func (p *KinesisProxy) LimitReads(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.limit = on
}

// LimitWrites throttles what is above n PutRecord a second, as a shard does that has become too small; 0 throttles
// nothing. PutRecords is not limited.
func (p *KinesisProxy) LimitWrites(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mostPuts = n
}

// Swallow loses each nth PutRecord: it is answered as if the record were stored, and it is not. 0 loses none.
func (p *KinesisProxy) Swallow(nth int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.swallow, p.puts = nth, 0
}

// Swallowed returns the data of all records that were lost by Swallow.
func (p *KinesisProxy) Swallowed() [][]byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.swallowed)
}

// ExpireIterators makes every iterator that was handed out until now an expired one.
func (p *KinesisProxy) ExpireIterators() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for it := range p.iterators {
		p.expired[it] = true
	}
}

// Calls returns how many calls of an operation clients have made, those that went wrong too.
func (p *KinesisProxy) Calls(operation string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.calls[operation]
}

// Subscriptions returns how many SubscribeToShard streams are open.
func (p *KinesisProxy) Subscriptions() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.subs)
}

// EndSubscriptions ends all open subscriptions in good order, as the service does after five minutes.
func (p *KinesisProxy) EndSubscriptions() {
	p.eachSubscription(func(s *subscription) { s.end(io.EOF) })
}

// CutSubscriptions resets the connections of all open subscriptions. (A connection that only ends looks
// to the SDK like a subscription that ended in good order, even inside a frame.)
func (p *KinesisProxy) CutSubscriptions() {
	p.eachSubscription(func(s *subscription) {
		if tcp, ok := s.client.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		s.end(errors.New("cut by the test"))
	})
}

// SilenceSubscriptions lets all open subscriptions say nothing more, while their connections stay.
func (p *KinesisProxy) SilenceSubscriptions() { p.eachSubscription((*subscription).silence) }

func (p *KinesisProxy) eachSubscription(f func(*subscription)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for s := range p.subs {
		f(s)
	}
}

// ServeHTTP handles one call.
func (p *KinesisProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	operation := operationOf(r)
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	r = r.WithContext(context.WithValue(r.Context(), requestBody{}, body))
	restore(r, body)
	f := p.next(operation)
	if f == (KinesisFault{}) && !p.accepts(r) {
		f = KinesisFault{Status: http.StatusBadRequest, Type: "ExpiredTokenException"}
	}
	switch {
	case f.Lost:
		p.proxy.ServeHTTP(httptest.NewRecorder(), r)
		panic(http.ErrAbortHandler)
	case f.Hang:
		select {
		case <-r.Context().Done():
		case <-p.done:
		}
		panic(http.ErrAbortHandler)
	case f.Status != 0 && f.Type == "":
		http.Error(w, http.StatusText(f.Status), f.Status)
		return
	case f.Status != 0:
		writeError(w, f.Status, f.Type, "injected by the test")
		return
	}
	switch operation {
	case "GetRecords":
		if kind, message := p.refuseRead(body); kind != "" {
			writeError(w, http.StatusBadRequest, kind, message)
			return
		}
	case "PutRecord":
		if p.throttleWrite() {
			writeError(w, http.StatusBadRequest, throttled, "Rate exceeded for the shard.")
			return
		}
		if answer := p.swallowWrite(body); answer != nil {
			w.Header().Set("Content-Type", "application/x-amz-json-1.1")
			_ = json.NewEncoder(w).Encode(answer)
			return
		}
	case "PutRecords":
		if n := p.takeRejected(body); n > 0 {
			p.putRecords(w, r, body, n)
			return
		}
	}
	p.proxy.ServeHTTP(w, r)
}

// requestBody is the context key under which a call's body is found when its answer comes.
type requestBody struct{}

// clientConn is the context key of the connection that a call came over.
type clientConn struct{}

// accepts looks at the id of the access key only: the server takes any signature.
func (p *KinesisProxy) accepts(r *http.Request) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.key == "" || strings.Contains(r.Header.Get("Authorization"), " Credential="+p.key+"/")
}

func operationOf(r *http.Request) string {
	_, operation, _ := strings.Cut(r.Header.Get("X-Amz-Target"), ".")
	return operation
}

func restore(r *http.Request, body []byte) {
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	r.Header.Set("Content-Length", strconv.Itoa(len(body)))
}

func writeError(w http.ResponseWriter, status int, kind, message string) {
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	w.Header().Set("X-Amzn-Requestid", "00000000-0000-0000-0000-000000000000")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"__type": kind, "message": message})
}

// next counts a call and takes the fault that it shall suffer.
func (p *KinesisProxy) next(operation string) KinesisFault {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls[operation]++
	for i := range p.faults {
		f := &p.faults[i]
		if f.Operation == operation && f.Times > 0 {
			f.Times--
			return *f
		}
	}
	return KinesisFault{}
}

// refuseRead returns the error of a GetRecords call that must not pass, or nothing.
func (p *KinesisProxy) refuseRead(body []byte) (kind, message string) {
	var in struct{ ShardIterator string }
	if json.Unmarshal(body, &in) != nil {
		return "", ""
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.expired[in.ShardIterator] {
		return "ExpiredIteratorException", "Iterator expired. The iterator was created more than five minutes ago."
	}
	shard := p.iterators[in.ShardIterator]
	if !p.limit || shard == "" {
		return "", ""
	}
	var ok bool
	if p.reads[shard], ok = inSecond(p.reads[shard], 5); !ok {
		return throttled, fmt.Sprintf("Rate exceeded for shard %s.", shard)
	}
	return "", ""
}

// inSecond adds now to the times of the last second, unless there are most of them already.
func inSecond(recent []time.Time, most int) (kept []time.Time, ok bool) {
	now := time.Now()
	for len(recent) > 0 && now.Sub(recent[0]) >= time.Second {
		recent = recent[1:]
	}
	if len(recent) >= most {
		return recent, false
	}
	return append(recent, now), true
}

// throttleWrite reports whether a PutRecord is above the limit.
func (p *KinesisProxy) throttleWrite() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mostPuts == 0 {
		return false
	}
	var ok bool
	p.writes, ok = inSecond(p.writes, p.mostPuts)
	return !ok
}

// swallowWrite returns the answer to a PutRecord that is to be lost, or nil.
func (p *KinesisProxy) swallowWrite(body []byte) map[string]string {
	var in struct{ Data []byte }
	if json.Unmarshal(body, &in) != nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.swallow == 0 {
		return nil
	}
	if p.puts++; p.puts%p.swallow != 0 {
		return nil
	}
	p.swallowed = append(p.swallowed, in.Data)
	return map[string]string{"ShardId": "shardId-000000000000", "SequenceNumber": strconv.Itoa(len(p.swallowed))}
}

// takeRejected returns how many records of this PutRecords call are to be rejected.
func (p *KinesisProxy) takeRejected(body []byte) int {
	var in struct{ Records []json.RawMessage }
	if json.Unmarshal(body, &in) != nil {
		return 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	n := min(p.reject, len(in.Records))
	p.reject -= n
	return n
}

// putRecords passes a PutRecords call on without its first n records, which are reported as throttled.
func (p *KinesisProxy) putRecords(w http.ResponseWriter, r *http.Request, body []byte, n int) {
	var in map[string]json.RawMessage
	var records []json.RawMessage
	if err := errors.Join(json.Unmarshal(body, &in), json.Unmarshal(in["Records"], &records)); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	var out struct {
		FailedRecordCount int
		Records           []json.RawMessage
	}
	if n < len(records) {
		rest, err := json.Marshal(records[n:])
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		in["Records"] = rest
		if body, err = json.Marshal(in); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		restore(r, body)
		answer := httptest.NewRecorder()
		p.proxy.ServeHTTP(answer, r)
		if answer.Code != http.StatusOK || json.Unmarshal(answer.Body.Bytes(), &out) != nil {
			w.WriteHeader(answer.Code)
			_, _ = w.Write(answer.Body.Bytes())
			return
		}
	}
	rejected := json.RawMessage(`{"ErrorCode":"` + throttled + `","ErrorMessage":"injected by the test"}`)
	for range n {
		out.Records = append([]json.RawMessage{rejected}, out.Records...)
	}
	out.FailedRecordCount += n
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	_ = json.NewEncoder(w).Encode(out)
}

// modify looks at the server's answers.
func (p *KinesisProxy) modify(resp *http.Response) error {
	if resp.StatusCode != http.StatusOK {
		return nil
	}
	switch operationOf(resp.Request) {
	case "GetShardIterator", "GetRecords":
		return p.noteIterator(resp)
	case "SubscribeToShard":
		return p.subscribe(resp)
	}
	return nil
}

// noteIterator remembers which shard an iterator belongs to.
func (p *KinesisProxy) noteIterator(resp *http.Response) error {
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	resp.Body.Close()
	resp.Body = io.NopCloser(bytes.NewReader(body))
	in, _ := resp.Request.Context().Value(requestBody{}).([]byte)
	var asked struct{ StreamName, StreamARN, ShardId, ShardIterator string }
	var answered struct{ ShardIterator, NextShardIterator string }
	if err := errors.Join(json.Unmarshal(in, &asked), json.Unmarshal(body, &answered)); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if answered.ShardIterator != "" {
		stream := asked.StreamARN[strings.LastIndex(asked.StreamARN, "/")+1:] + asked.StreamName
		p.iterators[answered.ShardIterator] = asked.ShardId + " in stream " + stream
	}
	if answered.NextShardIterator != "" {
		p.iterators[answered.NextShardIterator] = p.iterators[asked.ShardIterator]
	}
	return nil
}

// subscription is one open SubscribeToShard stream.
type subscription struct {
	*io.PipeReader
	w      *io.PipeWriter
	source io.Closer
	client net.Conn
	quiet  chan struct{} // closed when nothing more is to be passed on
	once   sync.Once
	closed func()
}

// subscribe puts the frame in front of a subscription that every client waits for, and its faults around it.
func (p *KinesisProxy) subscribe(resp *http.Response) error {
	var first bytes.Buffer
	err := eventstream.NewEncoder().Encode(&first, eventstream.Message{
		Headers: eventstream.Headers{
			{Name: ":message-type", Value: eventstream.StringValue("event")},
			{Name: ":event-type", Value: eventstream.StringValue("initial-response")},
			{Name: ":content-type", Value: eventstream.StringValue("application/x-amz-json-1.1")},
		},
		Payload: []byte("{}"),
	})
	if err != nil {
		return err
	}
	s := &subscription{source: resp.Body, quiet: make(chan struct{})}
	s.client, _ = resp.Request.Context().Value(clientConn{}).(net.Conn)
	s.PipeReader, s.w = io.Pipe()
	s.closed = func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.subs, s)
	}
	p.mu.Lock()
	p.subs[s] = struct{}{}
	p.mu.Unlock()
	from := io.MultiReader(&first, resp.Body)
	go func() {
		buf := make([]byte, 32<<10)
		for {
			n, err := from.Read(buf)
			select {
			case <-s.quiet:
				// Read on, so that the server is not held up, and tell the client nothing, the end neither.
				if err == nil {
					_, _ = io.Copy(io.Discard, from)
				}
				return
			default:
			}
			if _, werr := s.w.Write(buf[:n]); werr != nil {
				return
			}
			if err != nil {
				s.end(err)
				return
			}
		}
	}()
	resp.Body = s
	resp.ContentLength = -1
	resp.Header.Del("Content-Length")
	return nil
}

// end lets the client's stream break with err, or end in good order when that is io.EOF.
func (s *subscription) end(err error) { s.w.CloseWithError(err) }

func (s *subscription) silence() { s.once.Do(func() { close(s.quiet) }) }

// Close is called when the client's stream is over, by whoever's doing.
func (s *subscription) Close() error {
	s.closed()
	return errors.Join(s.PipeReader.Close(), s.source.Close())
}
