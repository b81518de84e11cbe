//go:build long

package house_test

// backlog is the number of messages that wait for a dead host.
const backlog = 10000
