//go:build !long

package main

// switches is how many servers TestSwitch goes through; slow has it wait for slow programs.
const (
	switches = 3
	slow     = false
)
