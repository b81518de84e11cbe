package mailbox

import (
	"strings"

	"pennypost/internal/maildir"
)

// canonical is the spelling of a mailbox name: INBOX in any case is the inbox.
func canonical(name string) string {
	if strings.EqualFold(name, maildir.Inbox) {
		return maildir.Inbox
	}
	return name
}
