// Package spool holds the message files of the queue: their format, their states, their
// attempt logs, and what the scheduler leaves itself for the next start. It hides the
// directory layout; mspool(5) describes it for other programs.
//
// A message is one file that is written once and never changed. It lies in incoming/ until the
// scheduler takes it, then in queue/ until it is done. What becomes of its recipients is in a
// file beside it, log/ID. These are all the states:
//
//	state        incoming/ID    queue/ID  log/ID   means
//	S0 nothing   -              -         -        not accepted, or done
//	S1 writing   zeros or less  -         -        being written, or its writer died
//	S2 accepted  complete       -         maybe    the submitter was answered, or soon is
//	S3 queued    -              complete  -        taken, all recipients left, due at once
//	S4 deferred  -              complete  records  taken, and something has been tried or ordered
//	S5 ending    -              -         records  done; the log is garbage
//	S6 torn      damaged        -         -        a power cut during S1; nobody was answered
//	S7 repeated  complete       complete  maybe    a child submitted again after a crash
//
// In S1 line 1 is missing, incomplete or all zero digits; whoever can read a complete line 1
// with its length and checksum has a complete message. What moves a message on:
//
//	S0 -> S1  Create, or Commit for a message that fits the writer's buffer: open with O_EXCL
//	          under the final name, lock
//	S1 -> S2  Commit: write, line 1 last; fsync the file; fsync incoming/ where that is not
//	          one with it. Then the answer, and the lock ends with close, and a datagram
//	          wakes the scheduler
//	S1 -> S0  Abort, or a failed Commit: unlink
//	S2 -> S3  Take: check file, owner, lock, line 1, length, checksum; rename. Not synced
//	S3 -> S4  AppendLog: one write. Not synced, unless a person was promised something
//	S3, S4 -> S5 -> S0  Remove: unlink queue/ID, then log/ID. Not synced
//	S5 -> S0  Clean, when a crash fell between the two
//	S1, S6, any damage -> corrupt/ID  SetAside, with the reason in corrupt/ID.why
//	S7 -> S3, S4  Take: the same bytes are in both; incoming/ID is unlinked
//
// Who cleans up: a living writer its own S1; Clean an S1 whose file is over an hour old and
// whose lock nobody holds (both: a lock is taken a moment after the file is made); the
// scheduler S6, at once. Nothing that cannot be read is deleted. corrupt/ and history/ are for
// people; SweepHistory ends history files by age.
//
// What a power cut can undo is what is not synced. A lost rename of Take leaves S2: taken
// again. A lost tail of log/ID leaves finished recipients unfinished: they get the message
// twice. A lost Remove brings the message back: twice again. Nothing of this loses a message,
// and no order of these losses does, since the only step that ends one is an unlink that
// follows its delivery.
//
// The lock on a file in S1 keeps the scheduler from taking a message that is complete but not
// yet durable; otherwise a submitter whose fsync fails would report a failure for a message
// that is delivered.
//
// The name is made directly, not by rename from a temporary one: a fsync of a new file commits
// its name in the same journal transaction on ext4, xfs, btrfs and f2fs. On ext4 and xfs, where
// the power-cut harness shows it, that is all (durable.NamesWithFile); elsewhere the directory
// is synced behind it, and a submitter who may not open incoming/ for that goes without.
package spool
