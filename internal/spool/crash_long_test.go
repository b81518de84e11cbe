//go:build long

package spool_test

// crashSeeds is the number of power cuts tried at each operation.
const crashSeeds = 40
