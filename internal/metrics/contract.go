package metrics

import (
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lag-monitor/lag-monitor/sinks"
)

// prefix starts the name of every metric.
const prefix = "lag_monitor_"

// Severities are the values of the label severity: who is called.
const (
	Page   = "page"
	Ticket = "ticket"
)

// Results of an injection: the label result.
var results = []string{"success", "failure", "unknown"}

// SkipReason is why a tick went without a send: the label reason of
// lag_monitor_heartbeats_skipped_total.
type SkipReason int

// The reasons.
const (
	SkipOverrun  SkipReason = iota // the injection before had not ended, or the process was suspended
	SkipNotReady                   // no sink had begun to read yet
	SkipPaused                     // somebody paused the probe
	skipReasons
)

var skipNames = [skipReasons]string{"overrun", "sink_not_ready", "paused"}

// deaths are the values of the label reason of lag_monitor_heartbeats_dead_lettered_total.
var deaths = [deathReasons]string{sinks.DeadRejected, sinks.DeadExpired, sinks.DeadMaxLen, sinks.DeadDeliveryLimit, otherDeath}

// otherDeath is the reason where the broker gives none, or one that is not in the list.
const otherDeath = "other"

const deathReasons = 5

// latencyBuckets are two per order of magnitude from a millisecond to a quarter of an hour: enough to
// see in which order a latency lies where native histograms are not scraped.
var latencyBuckets = []float64{.001, .0032, .01, .032, .1, .32, 1, 3.2, 10, 32, 100, 320, 1000}

// infoHelp is a constant since probe_info has many descriptions, by the labels of the teams.
const infoHelp = "Always 1; the labels of the probe's YAML."

// desc is one line of the contract.
type desc struct {
	*prometheus.Desc
	name   string
	labels []string
}

// The contract. docs/metrics.md lists it for users; a test holds the two together.
var (
	timestampDesc = describe("heartbeat_timestamp_seconds",
		"Due time of the newest heartbeat received, in seconds since the epoch. Absent until the first one.", "probe", "sink", "lane")
	lagDesc = describe("lag_seconds",
		"How far the sink is behind now: the latency of the newest heartbeat, or the age of the first tick after it. Absent until the first heartbeat.", "probe", "sink", "lane")
	sentDesc = describe("heartbeats_sent_total",
		"Heartbeats injected, by what the head said: accepted (success), certainly refused (failure), or not known (unknown).", "probe", "result")
	skippedDesc = describe("heartbeats_skipped_total",
		"Ticks that passed without an injection.", "probe", "reason")
	receivedDesc = describe("heartbeats_received_total",
		"Heartbeats received, each counted once. Late ones were counted as dropped or indeterminate before.", "probe", "sink", "timing")
	droppedDesc = describe("heartbeats_dropped_total",
		"Heartbeats that the head accepted and that a sink proven to be reading had not seen at their deadline.", "probe", "sink", "reason")
	indeterminateDesc = describe("heartbeats_indeterminate_total",
		"Heartbeats whose outcome cannot be known.", "probe", "sink", "reason")
	duplicatedDesc = describe("heartbeats_duplicated_total",
		"Arrivals of a heartbeat that had arrived before: as another message (duplicate) or the same stored message again (redelivery).", "probe", "sink", "kind")
	reorderedDesc = describe("heartbeats_reordered_total",
		"Heartbeats that arrived after a younger one of the same lane.", "probe", "sink")
	unaccountedDesc = describe("heartbeats_unaccounted_total",
		"Arrivals that belong to no account: the head had refused the heartbeat, or it is too old to be known.", "probe", "sink")
	restoredDesc = describe("heartbeats_restored_total",
		"Heartbeats of earlier runs of the probe that were taken over while their outcome was open: from the journal after a restart, or when the probe's definition changed.", "probe", "sink")
	deadLetteredDesc = describe("heartbeats_dead_lettered_total",
		"Messages with a heartbeat that were found in a dead-letter queue, by the broker's reason.", "probe", "sink", "reason")
	inFlightDesc = describe("heartbeats_in_flight",
		"Heartbeats sent whose outcome is open.", "probe", "sink")
	negativeDesc = describe("negative_latencies_total",
		"Heartbeats that arrived before they were due: the clocks of two hosts differ, or the pipeline does not wait for the expiry.", "probe", "sink")
	skewDesc = describe("clock_skew_seconds",
		"By how much the clock of the sending host is ahead of ours, at least, as seen in the last minutes. 0 in one process.", "probe", "sink")
	infoDesc      = describe("probe_info", infoHelp, "probe")
	thresholdDesc = describe("probe_threshold_seconds",
		"Lag above which somebody is called.", "probe", "severity")
	forDesc = describe("probe_for_seconds",
		"For how long the lag has to be above the threshold.", "probe", "severity")
	ratioDesc = describe("probe_threshold_drop_ratio",
		"Ratio of dropped heartbeats above which somebody is called.", "probe", "severity")
	duplicateRatioDesc = describe("probe_threshold_duplicate_ratio",
		"Ratio of heartbeats that come out twice above which somebody is called.", "probe", "severity")
	reorderRatioDesc = describe("probe_threshold_reorder_ratio",
		"Ratio of heartbeats that come out after a younger one above which somebody is called.", "probe", "severity")
	sloLatencyDesc = describe("probe_slo_latency_seconds",
		"How long after it was due a heartbeat may come out to count for the objective.", "probe")
	sloObjectiveDesc = describe("probe_slo_objective_ratio",
		"Share of the messages that is meant to come out within the latency of the objective.", "probe")
	withinSLODesc = describe("heartbeats_within_slo_total",
		"Heartbeats that came out within the latency of the probe's objective.", "probe", "sink")
	beyondSLODesc = describe("heartbeats_beyond_slo_total",
		"Heartbeats that the head accepted and that are known to have come out later than the objective's latency, or not by their deadline.", "probe", "sink")
	intervalDesc = describe("probe_interval_seconds",
		"Time between two heartbeats of a lane.", "probe")
	expiryDesc = describe("probe_expiry_seconds",
		"For how long the pipeline is asked to hold a heartbeat.", "probe")
	pausedDesc = describe("probe_paused",
		"1 while somebody has paused the injections of the probe, else 0.", "probe")
	pausedUntilDesc = describe("probe_paused_until_timestamp_seconds",
		"When the pause of the probe ends by itself. Absent while it is not paused.", "probe")
	stuckDesc = describe("stuck",
		"1 while heartbeats have passed one station of the probe and do not come to the next one, whose sink is proven to read.", "probe", "from", "to")
	sinkUpDesc = describe("sink_up",
		"1 while the sink is reading its queue, 0 while it is blind.", "sink")
	caughtUpDesc = describe("sink_caught_up_timestamp_seconds",
		"Everything that entered the queue before this time has been read. Absent until the sink has caught up once.", "sink")
	messagesDesc = describe("sink_messages_total",
		"Messages seen on the queue.", "sink", "kind")
	errorsDesc = describe("sink_errors_total",
		"Errors of the sink, by class.", "sink", "class")
	journalErrorsDesc    = describe("journal_errors_total", "Failures to read or to write the journal.")
	tracesExportedDesc   = describe("traces_exported_total", "Traces of heartbeats that their receiver has taken.")
	tracesDroppedDesc    = describe("traces_dropped_total", "Traces of heartbeats that were thrown away, or of which the receiver did not want a part.", "reason")
	backlogMessagesDesc  = describe("backlog_messages", "Messages that wait in the queue.", "sink", "queue", "group", "partition")
	backlogSecondsDesc   = describe("backlog_seconds", "Age of the oldest message that waits in the queue.", "sink", "queue", "group", "partition")
	backlogConsumersDesc = describe("backlog_consumers", "Consumers of the queue.", "sink", "queue", "group", "partition")

	backlogLimitMessagesDesc = describe("sink_threshold_backlog_messages", "Waiting messages above which somebody is called.", "sink")
	backlogLimitSecondsDesc  = describe("sink_threshold_backlog_seconds", "Age of the oldest waiting message above which somebody is called.", "sink")

	latencyName     = prefix + "heartbeat_latency_seconds"
	hopName         = prefix + "hop_latency_seconds"
	injectName      = prefix + "heartbeat_inject_duration_seconds"
	reloadOKName    = prefix + "config_last_reload_successful"
	reloadTimeName  = prefix + "config_last_reload_success_timestamp_seconds"
	buildInfoName   = prefix + "build_info"
	histogramLabels = map[string][]string{latencyName: {"probe", "sink"}, hopName: {"probe", "from", "to"}, injectName: {"probe"}}
)

func describe(name, help string, labels ...string) desc {
	return desc{prometheus.NewDesc(prefix+name, help, labels, nil), prefix + name, labels}
}

// contract lists every description above.
func contract() []desc {
	return []desc{timestampDesc, lagDesc, sentDesc, skippedDesc, receivedDesc, droppedDesc, indeterminateDesc, duplicatedDesc,
		reorderedDesc, unaccountedDesc, restoredDesc, deadLetteredDesc, inFlightDesc, negativeDesc, skewDesc, infoDesc, thresholdDesc,
		forDesc, ratioDesc, intervalDesc, expiryDesc, pausedDesc, pausedUntilDesc, stuckDesc, sinkUpDesc, caughtUpDesc, messagesDesc,
		errorsDesc, journalErrorsDesc, tracesExportedDesc, tracesDroppedDesc, backlogMessagesDesc, backlogSecondsDesc, backlogConsumersDesc,
		duplicateRatioDesc, reorderRatioDesc, sloLatencyDesc, sloObjectiveDesc, withinSLODesc, beyondSLODesc, backlogLimitMessagesDesc,
		backlogLimitSecondsDesc}
}

// Names returns the name of every metric of the contract with its labels, without those of Go and of
// the process. probe_info has the labels of the probe's YAML besides.
func Names() map[string][]string {
	names := map[string][]string{reloadOKName: nil, reloadTimeName: nil,
		buildInfoName: {"version", "revision", "branch", "goversion", "goos", "goarch", "tags"}}
	for _, d := range contract() {
		names[d.name] = slices.Clone(d.labels)
	}
	for name, labels := range histogramLabels {
		names[name] = slices.Clone(labels)
	}
	return names
}
