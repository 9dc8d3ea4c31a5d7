// Package service is what the parts of every pattern's service have in common: what they are given, and the network that
// a kill takes away from them. It knows no broker and no test.
package service
