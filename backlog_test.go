package house_test

import (
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"pennypost/internal/envelope"
	"pennypost/internal/mailtest"
	"pennypost/internal/spool"
)

// TestBacklog fills the queue for a host that does not answer, sees a new local message pass it,
// and lets the host come back: every message arrives, once.
func TestBacklog(t *testing.T) {
	hole, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := hole.Addr().String()
	hole.Close() // from now on nobody answers there
	in, err := mailtest.NewInstance(mailtest.InstanceOptions{
		Bin:   tools.Dir(t),
		Extra: fmt.Sprintf("queue.retry = [\"1s\"]\n[[route]]\nmatch = \"dead.test\"\nto = %q\ntls = \"none\"\n", addr),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := in.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := in.Start("mqueue"); err != nil {
		t.Fatal(err)
	}
	sp, err := spool.Open(in.Spool, spool.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer sp.Close()
	fill(t, sp)
	states := func() map[string]int {
		out, err := exec.Command(filepath.Join(tools.Dir(t), "mqueue"), "--config", in.Config, "list").Output()
		if err != nil {
			t.Fatal(err)
		}
		n := map[string]int{}
		for line := range strings.Lines(string(out)) {
			n[strings.Split(line, "\t")[1]]++
		}
		return n
	}
	if !mailtest.Wait(time.Minute, func() bool { return states()["waiting"]+states()["active"] == backlog }) {
		t.Fatalf("the backlog is %v", states())
	}
	begun := time.Now()
	send(t, sp, "alice@example.test", "bob@example.test")
	if !mailtest.Wait(20*time.Second, func() bool { m, err := in.Mail("bob@example.test"); return err == nil && len(m) == 1 }) {
		t.Fatal("a local message does not pass the backlog")
	}
	t.Logf("a local message passed a backlog of %d in %v, looked for each 10 ms", backlog, time.Since(begun).Round(time.Millisecond))
	peer := mailtest.StartPeer(t, mailtest.PeerOptions{Addr: addr})
	if !mailtest.Wait(3*time.Minute, func() bool { return len(states()) == 0 }) {
		t.Fatalf("left: %v", states())
	}
	seen := map[string]int{}
	for _, m := range peer.Messages() {
		for _, to := range m.To {
			seen[to]++
		}
	}
	for i := range backlog {
		if to := fmt.Sprintf("u%d@dead.test", i); seen[to] != 1 {
			t.Errorf("%s got %d copies", to, seen[to])
		}
	}
}

func fill(t *testing.T, sp *spool.Spool) {
	t.Helper()
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := w; i < backlog; i += 8 {
				send(t, sp, "alice@example.test", fmt.Sprintf("u%d@dead.test", i))
			}
		})
	}
	wg.Wait()
}

func send(t *testing.T, sp *spool.Spool, from, to string) {
	w, err := sp.Create(&envelope.Envelope{From: from, To: []envelope.Recipient{{Addr: to}}, Origin: envelope.Origin{Kind: envelope.OriginPipe}})
	if err == nil {
		_, err = io.WriteString(w, "Subject: backlog\n\nbody\n")
	}
	if err == nil {
		err = w.Commit()
	}
	if err != nil {
		t.Error(err)
	}
}
