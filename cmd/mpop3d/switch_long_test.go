//go:build long

package main

const (
	switches = 4
	slow     = true
)
