# Pennypost. "make" builds into bin/, "make test" needs nothing but Go, "make check" is what
# must pass before a change is taken, "make demo" shows two hosts exchanging mail.
#
# make install honours DESTDIR, PREFIX, SYSCONFDIR, UNITDIR (empty: no systemd files) and
# INSTALL_SENDMAIL=1 (links sendmail, mailq and newaliases to msend).

PREFIX = /usr/local
SYSCONFDIR = /etc
BINDIR = $(PREFIX)/bin
MANDIR = $(PREFIX)/share/man
SYSTEMDDIR = $(PREFIX)/lib
UNITDIR = $(SYSTEMDDIR)/systemd/system
DESTDIR =
INSTALL_SENDMAIL =

# Directory with rfcNNNN.txt files: makes the citation check run in "make check".
RFC_DIR =

GO = go
# The tag leaves out the flag library's manual generator, a quarter of a tool's start-up time.
TAGS = urfave_cli_no_docs
# No path of the build machine and no state of the checkout gets into a binary: the same
# source built with the same Go anywhere is the same bytes.
BUILDFLAGS = -trimpath -buildvcs=false -tags $(TAGS) -ldflags '-s -w'

all: build

build:
	@mkdir -p bin && touch bin/.building
	CGO_ENABLED=0 $(GO) build $(BUILDFLAGS) -o bin/ ./cmd/...
	@mv bin/.building bin/.built

test:
	CGO_ENABLED=0 $(GO) test -tags $(TAGS) ./...

check:
	RFC_DIR='$(RFC_DIR)' GO='$(GO)' TAGS='$(TAGS)' MAKE='$(MAKE)' scripts/check

# The storms of the mail store for as long as it takes: about half an hour.
soak:
	CGO_ENABLED=0 $(GO) test -timeout 2h -v -run 'Storm|FalseExpunge|Share|Model|Crash|Damage' -tags '$(TAGS) long soak' ./internal/mailbox

demo: build
	CGO_ENABLED=0 $(GO) run -tags $(TAGS) ./scripts/demo

bench: build
	CGO_ENABLED=0 $(GO) run -tags $(TAGS) ./scripts/bench

install: build
	DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' BINDIR='$(BINDIR)' MANDIR='$(MANDIR)' \
	SYSCONFDIR='$(SYSCONFDIR)' SYSTEMDDIR='$(SYSTEMDDIR)' UNITDIR='$(UNITDIR)' \
	INSTALL_SENDMAIL='$(INSTALL_SENDMAIL)' scripts/install

clean:
	rm -rf bin

.PHONY: all build test check soak demo bench install clean
