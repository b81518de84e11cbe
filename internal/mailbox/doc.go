// Package mailbox keeps the mail of one account: UIDs, flags, MODSEQ, what was expunged, and the
// cache of parsed messages, over Maildirs that other programs use at the same time. It hides the
// index, the scanning, and every lock.
package mailbox
