// Package sim runs the real monitor under a fake clock against a pipeline that fails in every way a
// seed asks for, and compares all that the monitor says with an oracle that knows the truth. It is for
// tests only: nothing here talks to a broker, and the rules of the accounts are written a second time,
// with lists and no thought for speed.
package sim
