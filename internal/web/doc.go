// Package web is what lag-monitor shows over HTTP: metrics, the pages for the person on call and what they
// know as JSON, the lifecycle endpoints, the redacted configuration and profiles. It measures nothing: it asks
// the Source, words the answer, and prints it.
package web
