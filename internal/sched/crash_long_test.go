//go:build long

package sched

// crashCuts is how many power cuts are tried at each point, beside the kill.
const crashCuts = 25
