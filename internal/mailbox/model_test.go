package mailbox

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pennypost/internal/durable"
	"pennypost/internal/maildir"
)

// modelMessage is a message as the model knows it.
type modelMessage struct {
	text  string
	flags maildir.Flags
	kw    []string
}

// modelBox is a folder as the model knows it: by UID.
type modelBox map[uint32]*modelMessage

// model drives several processes (Stores) with several views and an outside program, and keeps
// what must come out.
type model struct {
	*bed
	rng    *rand.Rand
	stores []*Store
	views  map[string][]*View
	boxes  map[string]modelBox
	mods   map[string]uint64
	nexts  map[string]uint32
	texts  int
	trace  []string
}

func (m *model) note(format string, args ...any) {
	m.trace = append(m.trace, fmt.Sprintf(format, args...))
}

func (m *model) fail(format string, args ...any) {
	m.Helper()
	m.Fatalf("%s\nafter:\n%s", fmt.Sprintf(format, args...), strings.Join(m.trace, "\n"))
}

func (m *model) must(err error) {
	m.Helper()
	if err != nil {
		m.fail("%v", err)
	}
}

// settle syncs all views of a folder until they see what the model holds. Changes of another
// program may hide for a second where a directory's time has the same tick.
func (m *model) settle(name string) {
	m.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for _, v := range m.views[name] {
		for {
			_, err := v.Sync(m.Context())
			m.must(err)
			got := m.state(v)
			if got == m.boxes[name].String() {
				break
			}
			if time.Now().After(deadline) {
				m.fail("%s:\n%s\nwant\n%s", name, got, m.boxes[name])
			}
			time.Sleep(10 * time.Millisecond)
		}
		if v.HighestModSeq() < m.mods[name] || v.UIDNext() < m.nexts[name] {
			m.fail("%s: HIGHESTMODSEQ %d after %d, UIDNEXT %d after %d", name, v.HighestModSeq(), m.mods[name], v.UIDNext(), m.nexts[name])
		}
		m.mods[name], m.nexts[name] = v.HighestModSeq(), v.UIDNext()
	}
}

func (b modelBox) String() string {
	var uids []uint32
	for u := range b {
		uids = append(uids, u)
	}
	slices.Sort(uids)
	var out strings.Builder
	for _, u := range uids {
		slices.Sort(b[u].kw)
		fmt.Fprintf(&out, "%d %s %d %v\n", u, b[u].text, b[u].flags, b[u].kw)
	}
	return out.String()
}

func (m *model) state(v *View) string {
	var out strings.Builder
	for _, x := range v.All(1, v.Len()) {
		text, err := readAll(v, x.UID)
		if errors.Is(err, ErrExpunged) {
			return "in between"
		}
		m.must(err)
		kw := keywordNames(v.Keywords(), x.Keywords)
		slices.Sort(kw)
		fmt.Fprintf(&out, "%d %s %d %v\n", x.UID, text, x.Flags, kw)
	}
	return out.String()
}

func (m *model) pick(name string) (uids []uint32) {
	for u := range m.boxes[name] {
		uids = append(uids, u)
	}
	slices.Sort(uids)
	m.rng.Shuffle(len(uids), func(i, j int) { uids[i], uids[j] = uids[j], uids[i] })
	return uids[:min(len(uids), 1+m.rng.IntN(3))]
}

// step does one random thing.
func (m *model) step() {
	names := []string{"INBOX", "B"}
	k := m.rng.IntN(2)
	name, other := names[k], names[1-k]
	box := m.boxes[name]
	v := m.views[name][m.rng.IntN(len(m.views[name]))]
	uids := m.pick(name)
	f := maildir.Flags(1 << m.rng.IntN(6))
	what := m.rng.IntN(11)
	m.note("%d %s %v %d", what, name, uids, f)
	switch what {
	case 0, 1:
		m.texts++
		text := fmt.Sprint("text", m.texts)
		u := m.bed.append(v.m, text, f, "k1")
		box[u] = &modelMessage{text, f, []string{"k1"}}
	case 2, 3:
		ch := FlagChange{Op: Op(m.rng.IntN(3)), Flags: f, Keywords: []string{fmt.Sprint("k", m.rng.IntN(3))}}
		_, err := v.Store(m.Context(), uids, ch)
		m.must(err)
		for _, u := range uids {
			box[u].change(ch)
		}
	case 4:
		_, err := v.Expunge(m.Context(), uids)
		m.must(err)
		for _, u := range uids {
			delete(box, u)
		}
	case 5, 6:
		_, err := v.Sync(m.Context())
		m.must(err)
		dst := m.views[other][m.rng.IntN(len(m.views[other]))].m
		do := v.Copy
		if what == 6 {
			do = v.Move
		}
		dst, err = m.sameStore(v, dst.name)
		m.must(err)
		c, err := do(m.Context(), uids, dst)
		m.must(err)
		for i, u := range c.From {
			x := *box[u]
			x.kw = slices.Clone(x.kw)
			m.boxes[other][c.To[i]] = &x
			if what == 6 {
				delete(box, u)
			}
		}
	case 7, 8:
		m.outside(name, what == 7)
	case 9:
		m.damage(name)
	case 10: // a process ends and another begins
		i := m.rng.IntN(len(m.stores))
		s := m.store()
		m.stores[i] = s
		for n := range m.views {
			m.views[n][i] = m.view(s, n, m.rng.IntN(2) == 0 && i > 0)
		}
	}
	m.settle(name)
	m.settle(other)
}

func (m *model) sameStore(v *View, name string) (*Mailbox, error) {
	return v.m.store.Mailbox(m.Context(), name)
}

func (x *modelMessage) change(ch FlagChange) {
	k := ch.Keywords[0]
	i := slices.Index(x.kw, k)
	switch ch.Op {
	case Add:
		x.flags |= ch.Flags
		if i < 0 {
			x.kw = append(x.kw, k)
		}
	case Remove:
		x.flags &^= ch.Flags
		if i >= 0 {
			x.kw = slices.Delete(x.kw, i, i+1)
		}
	default:
		x.flags, x.kw = ch.Flags|x.flags&maildir.Passed, []string{k}
	}
}

// outside is a program like mutt: it renames and removes files and knows nothing of UIDs.
func (m *model) outside(name string, remove bool) {
	dir := filepath.Join(m.root, "cur")
	if name != "INBOX" {
		dir = filepath.Join(m.root, "."+name, "cur")
	}
	v := m.views[name][0]
	for _, u := range m.pick(name) {
		for _, n := range list(m.T, dir) {
			b, err := os.ReadFile(filepath.Join(dir, n))
			m.must(err)
			if string(b) != m.boxes[name][u].text || !m.isFile(v, u, n) {
				continue
			}
			if remove {
				m.must(os.Remove(filepath.Join(dir, n)))
				delete(m.boxes[name], u)
				break
			}
			x := maildir.ParseName(n)
			x = x.With(x.Flags^maildir.Flagged, x.Keywords)
			m.must(durable.Rename(filepath.Join(dir, n), filepath.Join(dir, x.String())))
			m.boxes[name][u].flags ^= maildir.Flagged
			break
		}
	}
}

// isFile tells whether the message with that UID is in that file: copies have the same text.
func (m *model) isFile(v *View, uid uint32, file string) bool {
	_, err := v.Sync(m.Context())
	m.must(err)
	i, ok := v.st.find(uid)
	if !ok {
		return false
	}
	c, r := v.st.at(i)
	base, err := c.base(r)
	m.must(err)
	return base == maildir.ParseName(file).Base
}

// damage hurts the index in one of many ways: nobody may see anything of it.
func (m *model) damage(name string) {
	dir := m.root
	if name != "INBOX" {
		dir = filepath.Join(m.root, "."+name)
	}
	p := filepath.Join(dir, indexName)
	b, err := os.ReadFile(p)
	m.must(err)
	how := m.rng.IntN(4)
	m.note("damage %d", how)
	switch how {
	case 0:
		m.must(os.Remove(p))
	case 1:
		m.must(os.Truncate(p, m.rng.Int64N(int64(len(b)))))
	case 2:
		b[m.rng.IntN(len(b))] ^= 1 << m.rng.IntN(8)
		m.must(os.WriteFile(p+".x", b, 0o600))
		m.must(durable.Rename(p+".x", p))
	case 3:
		m.must(os.WriteFile(p, append(b, 1, 2, 3), 0o600))
	}
}

func runModel(t *testing.T, seed uint64, steps int) {
	m := &model{
		bed: newBed(t), rng: rand.New(rand.NewPCG(seed, 3)), views: map[string][]*View{},
		boxes: map[string]modelBox{"INBOX": {}, "B": {}}, mods: map[string]uint64{}, nexts: map[string]uint32{},
	}
	s := m.store()
	m.must(s.Create(t.Context(), "B"))
	for i := range 3 {
		if i > 0 {
			s = m.store()
		}
		m.stores = append(m.stores, s)
		for n := range m.boxes {
			m.views[n] = append(m.views[n], m.view(s, n, false))
		}
	}
	for range steps {
		for _, vs := range m.views { // read-only views do not change things
			for i, v := range vs {
				if v.ro {
					vs[i] = m.view(v.m.store, v.m.name, false)
				}
			}
		}
		m.step()
	}
}

func TestModel(t *testing.T) {
	for seed := range uint64(modelSeeds) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			runModel(t, seed, modelSteps)
		})
	}
}
