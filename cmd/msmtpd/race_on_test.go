//go:build race

package main

// raceDetector says that the program under test carries the race detector, whose memory is
// several times its own.
const raceDetector = true
