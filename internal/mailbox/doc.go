// Package mailbox keeps the mail of one account: UIDs, flags, MODSEQ, what was expunged, and the
// cache of parsed messages, over Maildirs that other programs use at the same time. It hides the
// index, the scanning, and every lock. mmailbox(5) has the formats.
//
// # What is true
//
// Flags are in file names, UIDs in dovecot-uidlist, the names of keywords in dovecot-keywords.
// The index says the same faster, and what nobody else says: MODSEQs and what was expunged.
// Where it is wrong or missing it is built anew, and MODSEQs go on above a ceiling that the
// uidlist reserves, so that no HIGHESTMODSEQ that a client has heard comes back.
//
//	step of a change            on disk after it                     if the machine stops here
//	file in tmp/, synced        tmp/NAME                             a leftover; Sweep removes it
//	renamed to cur/             cur/NAME:2,FLAGS                     a new message for the next scan
//	line in the uidlist, and    both durable: the client may be      the next scan finds UID and
//	cur/, synced                told (APPEND, COPY, MOVE)            file and makes the index agree
//	record in the index         MODSEQ; not synced                   after a power cut: another run
//	                                                                 of the machine, MODSEQs jump
//	rename in cur/, synced      flags; the client may be told        the scan sees the new flags and
//	                                                                 gives a new MODSEQ
//	unlink in cur/, synced      no file; the client may be told      the scan sees no file
//
// # When a folder is looked at
//
// Stamps (time, inode, size) of new/, cur/, the uidlist and the keyword file are in the index.
// While they are the same, nothing is scanned. A stamp that is younger than a second may stand
// for two contents, as may one that was taken around changes of our own: then a scan is due a
// second later. So a change of another program is seen at once or within about a second.
//
// A scan is not evidence that a message is gone: readdir during renames leaves names out. A
// message counts as expunged when a second scan misses it too and the directory did not change
// between a clock tick before that scan and its end, or when twelve scans in a row miss it.
//
// # Locks, in the order in which they are taken
//
//	Store.mu          the table of open folders; nothing else is waited for under it
//	pennypost-tree.lock  who changes the tree of folders
//	Mailbox.sem       the goroutine of this process that looks at or changes the folder
//	pennypost-index.lock the same among our processes (a lock of the kernel)
//	dovecot-uidlist.lock the same for uidlist and keywords, other programs included
//	pennypost-uidvalidity.lock who takes a UIDVALIDITY for a new list
//	cache.mu, the lock of pennypost-cache, Watcher.mu, subscribers.mu: leaves
//
// A move takes sem and index lock of two folders in the order of their directories. Readers take
// no lock of a file: a state in memory never changes, and the index only grows or is replaced.
package mailbox
