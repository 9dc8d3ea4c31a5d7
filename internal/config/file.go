package config

import (
	"fmt"
	"net/url"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/common/model"
	"gopkg.in/yaml.v3"

	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
	"github.com/lag-monitor/lag-monitor/internal/tracing"
	"github.com/lag-monitor/lag-monitor/probe"
	"github.com/lag-monitor/lag-monitor/sinks"
)

// The limits of durations. Below 10 ms the schedule's own jitter would be measured; a day between
// heartbeats, or a month in a queue, is a slip of the unit.
const (
	MinInterval = 10 * time.Millisecond // of a probe
	maxInterval = 24 * time.Hour
	maxWait     = 31 * 24 * time.Hour
	maxSend     = time.Hour
	maxSkew     = time.Hour
	maxLookBack = 24 * time.Hour // as fast as a sink may read, that takes a while
	// maxWaiting is how many heartbeats of one lane may be on their way at once: as many as the ledger
	// follows.
	maxWaiting = 1 << 16
)

// rawGlobal is `global:`.
type rawGlobal struct {
	Interval    conn.Duration     `yaml:"interval"`
	Timeout     conn.Duration     `yaml:"timeout"`
	SendTimeout conn.Duration     `yaml:"send_timeout"`
	Labels      map[string]string `yaml:"labels"`
	Page        rawThresholds     `yaml:"page"`
	Ticket      rawTicket         `yaml:"ticket"`
	SLO         rawSLO            `yaml:"slo"`
	Key         keyList           `yaml:"key"`
	Instance    string            `yaml:"instance"`
	MaxSkew     conn.Duration     `yaml:"max_skew"`
	Tracing     *rawTracing       `yaml:"tracing"`
}

// rawTracing is `tracing:`.
type rawTracing struct {
	SampleRatio ratio `yaml:"sample_ratio"` // 0: not set
	OTLP        *otlp `yaml:"otlp"`
}

// otlp is `otlp:`, over its defaults.
type otlp struct {
	tracing.OTLP `yaml:",inline"`
}

func (o *otlp) decodeNode(d *decoder, n *yaml.Node, path string) {
	o.OTLP = *tracing.NewOTLP()
	before := len(d.problems)
	d.structure(n, reflect.ValueOf(&o.OTLP).Elem(), path)
	if len(d.problems) == before {
		d.fieldErrors(path, o.Validate())
	}
}

func (o *otlp) encodeNode(l layouts) *yaml.Node {
	if o == nil {
		return nil
	}
	return l.encode(reflect.ValueOf(o.OTLP), reflect.ValueOf(*tracing.NewOTLP()))
}

func (t *rawTracing) config() (c tracing.Config) {
	if t == nil {
		return c
	}
	c.SampleRatio = float64(t.SampleRatio)
	if c.SampleRatio == 0 {
		c.SampleRatio = 1
	}
	if t.OTLP != nil {
		c.OTLP = &t.OTLP.OTLP
	}
	return c
}

func rawTracingOf(c tracing.Config) *rawTracing {
	if c.SampleRatio == 0 {
		return nil
	}
	t := &rawTracing{SampleRatio: ratio(c.SampleRatio)}
	if c.OTLP != nil {
		t.OTLP = &otlp{*c.OTLP}
	}
	return t
}

func defaultGlobal() rawGlobal {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "lag-monitor"
	}
	return rawGlobal{
		Interval:    conn.Duration(15 * time.Second),
		Timeout:     conn.Duration(time.Minute),
		SendTimeout: conn.Duration(10 * time.Second),
		Instance:    host,
		MaxSkew:     conn.Duration(10 * time.Second),
	}
}

// rawThresholds is `page:` or `ticket:`.
type rawThresholds struct {
	Lag       conn.Duration `yaml:"lag"`
	For       conn.Duration `yaml:"for"`
	DropRatio ratio         `yaml:"drop_ratio"`
}

func (t rawThresholds) thresholds() Thresholds {
	return Thresholds{Lag: time.Duration(t.Lag), For: time.Duration(t.For), DropRatio: float64(t.DropRatio)}
}

func (t Thresholds) raw() rawThresholds {
	return rawThresholds{Lag: conn.Duration(t.Lag), For: conn.Duration(t.For), DropRatio: ratio(t.DropRatio)}
}

// rawTicket is `ticket:`. What nobody but the consumers behind the queue would notice wakes nobody up.
type rawTicket struct {
	rawThresholds  `yaml:",inline"`
	DuplicateRatio ratio `yaml:"duplicate_ratio"`
	ReorderRatio   ratio `yaml:"reorder_ratio"`
}

func (t rawTicket) thresholds() Thresholds {
	out := t.rawThresholds.thresholds()
	out.DuplicateRatio, out.ReorderRatio = float64(t.DuplicateRatio), float64(t.ReorderRatio)
	return out
}

func (t Thresholds) rawTicket() rawTicket {
	return rawTicket{rawThresholds: t.raw(), DuplicateRatio: ratio(t.DuplicateRatio), ReorderRatio: ratio(t.ReorderRatio)}
}

// rawSLO is `slo:`.
type rawSLO struct {
	Latency   conn.Duration `yaml:"latency"`
	Objective ratio         `yaml:"objective"`
}

func (s rawSLO) slo() SLO {
	return SLO{Latency: time.Duration(s.Latency), Objective: float64(s.Objective)}
}

func (s SLO) raw() rawSLO {
	return rawSLO{Latency: conn.Duration(s.Latency), Objective: ratio(s.Objective)}
}

// rawBacklog is `backlog:` of a sink.
type rawBacklog struct {
	Messages int64         `yaml:"messages"`
	Age      conn.Duration `yaml:"age"`
}

// ratio is a part of a whole: 0.01 or 1%.
type ratio float64

// ParseRatio reads a part of a whole, from 0 to 1: 0.01 or 1%.
func ParseRatio(s string) (float64, error) {
	number, percent := strings.CutSuffix(s, "%")
	f, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if err != nil {
		return 0, fmt.Errorf("%q is not a ratio: write 1%% or 0.01", s)
	}
	if percent {
		f /= 100
	}
	if !(f >= 0 && f <= 1) {
		return 0, fmt.Errorf("%s is not above 0 and at most 1 (100%%): write 1%% or 0.01", s)
	}
	return f, nil
}

func (r *ratio) UnmarshalYAML(unmarshal func(any) error) error {
	var s string
	if err := unmarshal(&s); err != nil {
		return err
	}
	f, err := ParseRatio(s)
	if err != nil {
		return err
	}
	if f == 0 {
		return fmt.Errorf("%s is not above 0 and at most 1 (100%%): write 1%% or 0.01", s)
	}
	*r = ratio(f)
	return nil
}

// keyList is one secret or a list of them.
type keyList []conn.Secret

func (k *keyList) decodeNode(d *decoder, n *yaml.Node, path string) {
	if n.Kind == yaml.SequenceNode {
		list := []conn.Secret(*k)
		d.value(n, reflect.ValueOf(&list).Elem(), path)
		if len(list) == 0 {
			d.fail(n, path, "the list is empty: name a secret, or remove the key")
		}
		*k = list
		return
	}
	var one conn.Secret
	d.value(n, reflect.ValueOf(&one).Elem(), path)
	*k = keyList{one}
}

// rawSink is one entry of `sinks:`. Beside those of rawAnySink its only key is the kind.
type rawSink struct {
	any    rawAnySink
	kind   string
	config sinks.Config
	def    sinks.Config // the kind's defaults
}

// rawAnySink is what every kind of sink has.
type rawAnySink struct {
	Role     string         `yaml:"role"`
	LookBack *conn.Duration `yaml:"look_back"` // nil: not set
	Unwrap   []string       `yaml:"unwrap"`
	Backlog  rawBacklog     `yaml:"backlog"`
}

func (s *rawSink) decodeNode(d *decoder, n *yaml.Node, path string) {
	s.any.Role = Destination
	common := d.layouts.of(reflect.TypeFor[rawAnySink]())
	pairs, ok := d.mapping(n, path, "want a kind of sink with its settings, such as {"+d.example(d.kinds.sinks())+": {…}}")
	if !ok {
		return
	}
	kinds := d.kinds.sinks()
	var kind []pair
	for _, p := range pairs {
		at := join(path, p.name)
		if i := slices.IndexFunc(common, func(f field) bool { return f.name == p.name }); i >= 0 {
			d.mark(p, at)
			d.value(p.value, common[i].in(reflect.ValueOf(&s.any).Elem()), at)
			continue
		}
		if slices.Contains(kinds, p.name) {
			kind = append(kind, p)
			continue
		}
		switch {
		case slices.Contains(d.kinds.probes(), p.name):
			d.fail(p.key, at, "%s can only inject; kinds of sink: %s", p.name, strings.Join(kinds, ", "))
		default:
			d.fail(p.key, at, "%s", Unknown("key or kind of sink", p.name, append(names(common), kinds...)))
		}
		kind = append(kind, pair{}) // counts as a kind, so that nobody is told that there is none
	}
	if roles := []string{Destination, Hop, DeadLetter}; !slices.Contains(roles, s.any.Role) {
		d.failAt(path+".role", "%s", Unknown("role", s.any.Role, roles))
	}
	if s.any.LookBack != nil {
		d.inRange(path+".look_back", *s.any.LookBack, 0, maxLookBack)
	}
	if n := len(s.any.Unwrap); n > sinks.MaxEnvelopes {
		d.failAt(path+".unwrap", "%d envelopes one inside the other; at most %d", n, sinks.MaxEnvelopes)
	}
	for i, name := range s.any.Unwrap {
		if valid := sinks.Envelopes(); !slices.Contains(valid, name) {
			d.failAt(fmt.Sprintf("%s.unwrap[%d]", path, i), "%s", Unknown("envelope", name, valid))
		}
	}
	if at := path + ".backlog.messages"; d.has(at) && s.any.Backlog.Messages < 1 {
		d.failAt(at, "%d is not above 0", s.any.Backlog.Messages)
	}
	d.inRange(path+".backlog.age", s.any.Backlog.Age, 1, maxWait)
	if p, ok := d.oneKind(n, path, "sink", kinds, kind); ok {
		s.kind = p.name
		s.config, _ = d.kinds.newSink(p.name)
		s.def = kindDefault(d, "sink "+p.name, s.config, d.kinds.newSink, p.name)
		d.kindConfig(p, s.config, path)
	}
}

// inject is `inject:` of a probe: its only key is the kind.
type inject struct {
	kind   string
	config probe.Config
	def    probe.Config // the kind's defaults
}

func (i *inject) decodeNode(d *decoder, n *yaml.Node, path string) {
	pairs, ok := d.mapping(n, path, "want a kind of injector with its settings, such as {"+d.example(d.kinds.probes())+": {…}}")
	if !ok {
		return
	}
	kinds := d.kinds.probes()
	var kind []pair
	for _, p := range pairs {
		if slices.Contains(kinds, p.name) {
			kind = append(kind, p)
			continue
		}
		at := join(path, p.name)
		switch {
		case slices.Contains(d.kinds.sinks(), p.name):
			d.fail(p.key, at, "%s can only listen; kinds of injector: %s", p.name, strings.Join(kinds, ", "))
		default:
			d.fail(p.key, at, "%s", Unknown("kind of injector", p.name, kinds))
		}
		kind = append(kind, pair{})
	}
	if p, ok := d.oneKind(n, path, "injector", kinds, kind); ok {
		i.kind = p.name
		i.config, _ = d.kinds.newProbe(p.name)
		i.def = kindDefault(d, "inject "+p.name, i.config, d.kinds.newProbe, p.name)
		d.kindConfig(p, i.config, path)
	}
}

// kindDefault returns the defaults of a kind, the same value for all its uses.
func kindDefault[C any](d *decoder, key string, _ C, create func(string) (C, bool), kind string) C {
	def, ok := d.defaults[key].(C)
	if !ok {
		def, _ = create(kind)
		d.defaults[key] = def
	}
	return def
}

func (d *decoder) example(kinds []string) string {
	if len(kinds) == 0 {
		return "KIND"
	}
	return kinds[0]
}

// oneKind returns the kind if exactly one was named. Entries without a name were reported already.
func (d *decoder) oneKind(n *yaml.Node, path, what string, valid []string, got []pair) (pair, bool) {
	named := slices.DeleteFunc(slices.Clone(got), func(p pair) bool { return p.key == nil })
	switch {
	case len(got) == 0:
		d.fail(n, path, "names no kind of %s; valid: %s", what, strings.Join(valid, ", "))
	case len(named) > 1:
		d.fail(named[1].key, join(path, named[1].name), "a second kind of %s beside %s: give each its own name", what, named[0].name)
	case len(named) == 1:
		return named[0], true
	}
	return pair{}, false
}

// kindConfig decodes and validates the settings of a kind over its defaults.
func (d *decoder) kindConfig(p pair, c interface{ Validate() error }, path string) {
	at := join(path, p.name)
	d.mark(p, at)
	before := len(d.problems)
	v := reflect.ValueOf(c)
	if v.Kind() != reflect.Pointer {
		d.fail(p.key, at, "the settings of this kind cannot be decoded")
		return
	}
	d.value(p.value, v.Elem(), at)
	// With a key misspelt Validate would only add that the right one is missing.
	if len(d.problems) == before {
		d.fieldErrors(at, c.Validate())
	}
}

func (s *rawSink) encodeNode(l layouts) *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode}
	add(n, "role", scalarNode(reflect.ValueOf(s.any.Role)))
	if s.any.LookBack != nil {
		add(n, "look_back", scalarNode(reflect.ValueOf(s.any.LookBack.String())))
	}
	add(n, "unwrap", l.encode(reflect.ValueOf(s.any.Unwrap), reflect.Value{}))
	add(n, "backlog", l.encode(reflect.ValueOf(s.any.Backlog), reflect.Value{}))
	add(n, s.kind, l.encode(reflect.ValueOf(s.config), reflect.ValueOf(s.def)))
	return n
}

func (i inject) encodeNode(l layouts) *yaml.Node {
	if i.config == nil {
		return nil
	}
	n := &yaml.Node{Kind: yaml.MappingNode}
	add(n, i.kind, l.encode(reflect.ValueOf(i.config), reflect.ValueOf(i.def)))
	return n
}

// rawProbe is one entry of `probes:`.
type rawProbe struct {
	Interval    conn.Duration     `yaml:"interval"`
	Expiry      conn.Duration     `yaml:"expiry"`
	Timeout     conn.Duration     `yaml:"timeout"`
	TTL         conn.Duration     `yaml:"ttl"`
	SendTimeout conn.Duration     `yaml:"send_timeout"`
	Labels      map[string]string `yaml:"labels"`
	Page        rawThresholds     `yaml:"page"`
	Ticket      rawTicket         `yaml:"ticket"`
	SLO         rawSLO            `yaml:"slo"`
	Runbook     string            `yaml:"runbook"`
	Dashboard   string            `yaml:"dashboard"`
	Inject      inject            `yaml:"inject"`
	Sinks       []string          `yaml:"sinks"`
}

func (r *rawProbe) decodeNode(d *decoder, n *yaml.Node, path string) {
	g := d.globals
	*r = rawProbe{Interval: g.Interval, Timeout: g.Timeout, SendTimeout: g.SendTimeout, Page: g.Page, Ticket: g.Ticket, SLO: g.SLO}
	d.structure(n, reflect.ValueOf(r).Elem(), path)
}

// file is one decoded file.
type file struct {
	include []string
	global  rawGlobal
	sinks   map[string]*Sink
	probes  map[string]*Probe
}

// headStation is the value of the label from for the place of injection, beside which sinks have their names.
const headStation = "head"

var validName = regexp.MustCompile(`^[A-Za-z0-9_-]{1,` + strconv.Itoa(heartbeat.MaxProbeName) + `}$`)

// reservedLabels stand on our own series, on every alert, or are made by Prometheus.
var reservedLabels = []string{"probe", "sink", "lane", "severity", "instance", "job", "alertname", "le", "quantile", "runbook", "dashboard"}

// decodeFile decodes one file. globals is nil for the main file, which has its own.
func decodeFile(name, dir string, data []byte, globals *rawGlobal, kinds kindTable) (*file, Problems, Problems) {
	d := newDecoder(name, dir, kinds)
	d.globals = globals
	f := &file{sinks: make(map[string]*Sink), probes: make(map[string]*Probe)}
	if root := d.parse(data); root != nil {
		d.top(root, f, globals == nil)
	}
	return f, d.problems.sorted(), d.warnings.sorted()
}

func (d *decoder) top(root *yaml.Node, f *file, main bool) {
	pairs, ok := d.mapping(root, "", "want the keys probes, sinks, …")
	if !ok {
		return
	}
	if main {
		f.global = defaultGlobal()
		d.globals = &f.global
	}
	valid := []string{"sinks", "probes"}
	if main {
		valid = append(valid, "global", "include")
	}
	// `global` first, wherever it stands: the probes start from it.
	slices.SortStableFunc(pairs, func(a, b pair) int {
		switch {
		case a.name == "global" && b.name != "global":
			return -1
		case b.name == "global" && a.name != "global":
			return 1
		}
		return 0
	})
	var rawSinks map[string]rawSink
	var rawProbes map[string]rawProbe
	for _, p := range pairs {
		switch {
		case strings.HasPrefix(p.name, "x-"):
			continue // a place for anchors
		case p.name == "sinks":
			d.mark(p, p.name)
			d.value(p.value, reflect.ValueOf(&rawSinks).Elem(), p.name)
		case p.name == "probes":
			d.mark(p, p.name)
			d.value(p.value, reflect.ValueOf(&rawProbes).Elem(), p.name)
		case p.name == "global" && main:
			d.mark(p, p.name)
			d.value(p.value, reflect.ValueOf(&f.global).Elem(), p.name)
			d.checkGlobal(&f.global)
		case p.name == "include" && main:
			d.mark(p, p.name)
			d.value(p.value, reflect.ValueOf(&f.include).Elem(), p.name)
		case p.name == "global" || p.name == "include":
			d.fail(p.key, p.name, "only the main file has this key")
		default:
			d.fail(p.key, join("", p.name), "%s", Unknown("key", p.name, valid))
		}
	}
	if d.expanded > maxExpanded {
		return
	}
	for name, raw := range rawSinks {
		path := join("sinks", name)
		d.checkName(path, name)
		if name == headStation {
			d.fail(d.keys[path], path, "%s is what the place of injection is called in the metrics of hops: give the sink another name", name)
		}
		f.sinks[name] = raw.sink(name, d.source(path), d.layouts)
	}
	for name, raw := range rawProbes {
		path := join("probes", name)
		d.checkName(path, name)
		d.checkProbe(path, &raw)
		p := raw.probe(name, d.source(path), d.globals, d.layouts)
		if d.failed(path) || d.failed("global") {
			continue
		}
		if p.SLO.Latency > p.Timeout {
			d.failAt(path+".slo.latency", "slo.latency %s is longer than timeout %s: what comes later counts as lost already", short(p.SLO.Latency), short(p.Timeout))
		}
		if n := (p.Expiry + p.Timeout) / p.Interval; n > maxWaiting {
			d.fail(d.keys[path], path, "(expiry + timeout) / interval makes %d heartbeats wait at once; %d can be followed: lengthen the interval", n, maxWaiting)
		}
		d.warnProbe(path, p)
		f.probes[name] = p
	}
}

func (d *decoder) source(path string) Source {
	s := Source{File: d.file}
	if k := d.keys[path]; k != nil {
		s.Line = k.Line
	}
	return s
}

func (d *decoder) checkName(path, name string) {
	if !validName.MatchString(name) {
		d.fail(d.keys[path], path, "a name has 1 to %d letters, digits, _ and -", heartbeat.MaxProbeName)
	}
}

// inRange checks a duration that stands in the file.
func (d *decoder) inRange(path string, v conn.Duration, low, high time.Duration) {
	if !d.has(path) {
		return
	}
	switch t := time.Duration(v); {
	case t < low && low == 1:
		d.failAt(path, "%s is not above 0", short(t))
	case t < low && low == 0:
		d.failAt(path, "%s is below 0", short(t))
	case t < low:
		d.failAt(path, "%s is too short; the shortest is %s", short(t), short(low))
	case t > high:
		d.failAt(path, "%s is too long; the longest is %s", short(t), short(high))
	}
}

// short writes a duration as a person would: 5m, not 5m0s.
func short(t time.Duration) string {
	if t > 0 && t%time.Millisecond == 0 {
		return model.Duration(t).String()
	}
	return t.String()
}

func (d *decoder) checkGlobal(g *rawGlobal) {
	d.inRange("global.interval", g.Interval, MinInterval, maxInterval)
	d.inRange("global.timeout", g.Timeout, 1, maxWait)
	d.inRange("global.send_timeout", g.SendTimeout, 1, maxSend)
	d.inRange("global.max_skew", g.MaxSkew, 0, maxSkew)
	d.checkLabels("global.labels", g.Labels)
	d.checkThresholds("global.page", g.Page)
	d.checkThresholds("global.ticket", g.Ticket.rawThresholds)
	d.checkSLO("global.slo", g.SLO)
	if d.has("global.instance") && (g.Instance == "" || len(g.Instance) > 256) {
		d.failAt("global.instance", "want 1 to 256 bytes of text")
	}
}

func (d *decoder) checkProbe(path string, p *rawProbe) {
	d.inRange(path+".interval", p.Interval, MinInterval, maxInterval)
	d.inRange(path+".expiry", p.Expiry, 0, maxWait)
	d.inRange(path+".timeout", p.Timeout, 1, maxWait)
	d.inRange(path+".ttl", p.TTL, 1, 2*maxWait)
	d.inRange(path+".send_timeout", p.SendTimeout, 1, maxSend)
	d.checkLabels(path+".labels", p.Labels)
	d.checkThresholds(path+".page", p.Page)
	d.checkThresholds(path+".ticket", p.Ticket.rawThresholds)
	d.checkSLO(path+".slo", p.SLO)
	d.checkURL(path+".runbook", p.Runbook)
	d.checkURL(path+".dashboard", p.Dashboard)
	seen := make(map[string]bool)
	for i, s := range p.Sinks {
		at := fmt.Sprintf("%s.sinks[%d]", path, i)
		if seen[s] {
			d.failAt(at, "sink %q is here twice", s)
		}
		seen[s] = true
	}
	if !d.has(path+".inject") && len(p.Sinks) == 0 && !d.failed(path) {
		d.fail(d.keys[path], path, "has neither inject nor sinks: it would do nothing")
	}
}

func (d *decoder) checkThresholds(path string, t rawThresholds) {
	d.inRange(path+".lag", t.Lag, 1, maxWait)
	d.inRange(path+".for", t.For, 0, maxInterval)
	// Among the globals it is a default for the probes that have a limit.
	if d.has(path+".for") && t.Lag == 0 && !strings.HasPrefix(path, "global.") {
		d.failAt(path+".for", "is of no use without lag beside it")
	}
}

// The limits of an objective. Below, everything that comes out late does not burn the budget fast enough for the
// alerts; above, months of heartbeats could not tell whether it is kept.
const (
	minObjective = .9
	maxObjective = .99999
	sloWindow    = 72 * time.Hour
)

func (d *decoder) checkSLO(path string, s rawSLO) {
	d.inRange(path+".latency", s.Latency, 1, maxWait)
	if d.has(path+".objective") && s.Objective != 0 && (s.Objective < minObjective || s.Objective > maxObjective) {
		d.failAt(path+".objective", "%s is not an objective that heartbeats can be held against: want %s to %s", percent(float64(s.Objective)), percent(minObjective), percent(maxObjective))
	}
	// Among the globals one of them is a default for probes that set the other.
	if !strings.HasPrefix(path, "global.") && (s.Latency == 0) != (s.Objective == 0) && !d.failed(path) && !d.failed("global.slo") {
		d.failAt(path, "wants both, such as {latency: 30s, objective: 99.9%%}")
	}
}

// percent writes a ratio as a person would: 99.9%.
func percent(r float64) string { return strconv.FormatFloat(r*100, 'g', 7, 64) + "%" }

func (d *decoder) checkURL(path, s string) {
	if !d.has(path) || s == "" {
		return
	}
	if u, err := url.Parse(s); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		d.failAt(path, "want an address that begins with https:// or http://")
	}
}

func (d *decoder) checkLabels(path string, labels map[string]string) {
	for name, value := range labels {
		at := join(path, name)
		switch {
		case strings.HasPrefix(name, "__"):
			d.fail(d.keys[at], at, "labels that begin with __ belong to Prometheus")
		case !model.LegacyValidation.IsValidLabelName(name):
			d.fail(d.keys[at], at, "a label's name has letters, digits and _, and does not begin with a digit")
		case slices.Contains(reservedLabels, name):
			d.fail(d.keys[at], at, "this label is set by lag-monitor, its alerts or Prometheus; choose another name")
		case len(value) > 1024:
			d.failAt(at, "a label's value has at most 1024 bytes")
		}
	}
}

func (d *decoder) warnProbe(path string, p *Probe) {
	if p.Timeout < p.Interval {
		d.warnAt(path+".timeout", "timeout %s is shorter than interval %s: a heartbeat is given up before the next one is sent", short(p.Timeout), short(p.Interval))
	}
	if p.TTL < p.Expiry+p.Timeout {
		d.warnAt(path+".ttl", "ttl %s is shorter than expiry + timeout (%s): a broker may throw a heartbeat away that could still be on time", short(p.TTL), short(p.Expiry+p.Timeout))
	}
	if len(p.Sinks) == 0 {
		return // whoever listens pages
	}
	// One heartbeat of chance in the longest window of the alerts would already be too many.
	if b := (1 - p.SLO.Objective) * float64(sloWindow/p.Interval); p.SLO.Objective > 0 && b < 1 {
		d.warnAt(path+".slo.objective", "slo.objective %s is too fine for interval %s: in %s one heartbeat is more than the budget", percent(p.SLO.Objective), short(p.Interval), short(sloWindow))
	}
	if p.Page.IsZero() {
		d.warn(d.keys[path], path, "has no page threshold: nobody is paged when it lags")
	}
	for _, t := range []struct {
		name string
		Thresholds
	}{{"page", p.Page}, {"ticket", p.Ticket}} {
		if t.Lag > 0 && t.Lag < p.Interval {
			d.warnAt(path+"."+t.name+".lag", "%s.lag %s is shorter than interval %s: one lost heartbeat is enough for the alert", t.name, short(t.Lag), short(p.Interval))
		}
	}
	if p.Ticket.Lag > 0 && p.Page.Lag > 0 && p.Ticket.Lag >= p.Page.Lag {
		d.warnAt(path+".ticket.lag", "ticket.lag %s is not below page.lag %s: the ticket never comes before the page", short(p.Ticket.Lag), short(p.Page.Lag))
	}
}

func (s rawSink) sink(name string, src Source, l layouts) *Sink {
	out := &Sink{Name: name, Kind: s.kind, Role: s.any.Role, LookBack: AutoLookBack, Unwrap: s.any.Unwrap, Config: s.config, Source: src, def: s.def,
		Backlog: Backlog{Messages: float64(s.any.Backlog.Messages), Age: time.Duration(s.any.Backlog.Age)}}
	if s.any.LookBack != nil {
		out.LookBack = time.Duration(*s.any.LookBack)
	}
	if s.config != nil {
		out.Fingerprint = fingerprint(s.encodeNode(l), "look_back", "backlog")
	}
	return out
}

// raw is the opposite of rawSink.sink.
func (s *Sink) raw() *rawSink {
	backlog := rawBacklog{Messages: int64(s.Backlog.Messages), Age: conn.Duration(s.Backlog.Age)}
	r := &rawSink{any: rawAnySink{Role: s.Role, Backlog: backlog, Unwrap: s.Unwrap}, kind: s.Kind, config: s.Config, def: s.def}
	if s.LookBack >= 0 {
		back := conn.Duration(s.LookBack)
		r.any.LookBack = &back
	}
	return r
}

// probe fills in what depends on other keys.
func (r rawProbe) probe(name string, src Source, g *rawGlobal, l layouts) *Probe {
	p := &Probe{
		Name: name, Interval: time.Duration(r.Interval), Expiry: time.Duration(r.Expiry), Timeout: time.Duration(r.Timeout),
		TTL: time.Duration(r.TTL), SendTimeout: time.Duration(r.SendTimeout), Labels: make(map[string]string),
		Page: r.Page.thresholds(), Ticket: r.Ticket.thresholds(), SLO: r.SLO.slo(), Runbook: r.Runbook, Dashboard: r.Dashboard,
		InjectKind: r.Inject.kind, Inject: r.Inject.config, Sinks: r.Sinks, Source: src, def: r.Inject.def,
	}
	if p.TTL == 0 {
		p.TTL = max(4*p.Interval, p.Expiry+p.Timeout)
	}
	for k, v := range g.Labels {
		p.Labels[k] = v
	}
	for k, v := range r.Labels {
		p.Labels[k] = v
	}
	n := l.encode(reflect.ValueOf(p.raw()), reflect.Value{})
	p.Fingerprint = fingerprint(n)
	p.RunFingerprint = fingerprint(n, "labels", "page", "ticket", "slo", "runbook", "dashboard")
	return p
}

// raw is the opposite of rawProbe.probe.
func (p *Probe) raw() rawProbe {
	return rawProbe{
		Interval: conn.Duration(p.Interval), Expiry: conn.Duration(p.Expiry), Timeout: conn.Duration(p.Timeout),
		TTL: conn.Duration(p.TTL), SendTimeout: conn.Duration(p.SendTimeout), Labels: p.Labels, Page: p.Page.raw(), Ticket: p.Ticket.rawTicket(), SLO: p.SLO.raw(),
		Runbook: p.Runbook, Dashboard: p.Dashboard, Inject: inject{p.InjectKind, p.Inject, p.def}, Sinks: p.Sinks,
	}
}
