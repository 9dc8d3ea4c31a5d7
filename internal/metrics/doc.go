// Package metrics is the metrics contract: the only place where the names, labels, help texts and
// buckets of lag-monitor's metrics exist. It holds no state but the histograms; the values of all
// other metrics are read from the accounts at each scrape.
package metrics
