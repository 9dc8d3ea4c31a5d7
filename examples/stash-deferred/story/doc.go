// Package story breaks the case on a stage, one thing at a time, and looks at what a responder sees: the page, the
// figures, and what follows from them. Each story fails the test when it does not come out as it is told.
package story
