//go:build long

package main

// manyClients is how many TestManyIdle connects.
const manyClients = 10_000
