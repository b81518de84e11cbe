package mailbox

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"pennypost/internal/durable"
	"pennypost/internal/maildir"
	"pennypost/internal/message"
)

// index looks at our index: whether it can be read, and where it says that it is current,
// whether that is so.
func (k *folderCheck) index(ctx context.Context) error {
	m := k.m
	path := filepath.Join(m.indexAt, indexName)
	f, err := m.fs().OpenFile(path, os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it is a cache
	}
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	before, err := m.look()
	if err != nil {
		return err
	}
	st, err := readIndex(f, info.Size())
	p := problem{
		Finding: Finding{Path: path, Kind: "index", Remedy: "is built anew; clients with CONDSTORE ask for all flags once more"},
		mend:    true, drop: true,
	}
	switch {
	case errors.Is(err, errNewer):
		k.add(problem{Finding: Finding{Path: path, Kind: "index-newer", What: "a later release keeps this index; it is not used", Remedy: "nothing"}})
		return nil
	case errors.Is(err, errTorn):
		if k.stays(ctx, path, info.Size()) { // or somebody is writing
			p.Kind, p.What, p.Remedy, p.drop = "index-tail", "what follows the last record is none", "cuts it off", false
			k.add(p)
		}
		return nil
	case err != nil:
		p.What = err.Error()
		k.add(p)
		return nil
	}
	k.ceiling(st)
	if k.list == nil || !st.current(&before, k.now) {
		return nil // the next one who opens the mailbox brings it up to date
	}
	if what := k.differs(st); what != "" {
		after, err := m.look()
		if i, e := m.fs().Lstat(path); err != nil || e != nil || after != before || i.Size() != info.Size() {
			return err // others went on meanwhile
		}
		p.What, p.Serious = "it says that it is up to date, but "+what, true
		k.add(p)
	}
	return nil
}

// cache looks at what was parsed of messages.
func (k *folderCheck) cache(ctx context.Context) error {
	m := k.m
	path := filepath.Join(m.indexAt, cacheName)
	f, err := m.fs().OpenFile(path, os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	newer, whole := readCache(f, info.Size())
	switch {
	case newer:
		k.add(problem{Finding: Finding{Path: path, Kind: "cache-newer", What: "a later release keeps this cache; it is not used", Remedy: "nothing"}})
	case !whole && k.stays(ctx, path, info.Size()): // or somebody is writing
		k.add(problem{
			Finding: Finding{Path: path, Kind: "cache", What: "what was parsed of messages is damaged", Remedy: "goes; messages are parsed once more"},
			fix: func(context.Context) error {
				if err := m.fs().Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
					return err
				}
				return nil
			},
		})
	}
	return nil
}

// readCache reads all of a cache.
func readCache(f durable.File, size int64) (newer, whole bool) {
	h := make([]byte, cacheHead)
	if _, err := readAtFull(f, h, 0); err != nil {
		return false, false
	}
	le := binary.LittleEndian
	if string(h[:8]) != cacheMagic || crc32.Checksum(h[:20], castagnoli()) != le.Uint32(h[20:]) {
		return false, false
	}
	if le.Uint32(h[8:]) > cacheVersion {
		return true, true
	}
	var buf []byte
	end := int64(cacheHead)
	for end < size {
		b, next := readBlock(f, end, size)
		if b == nil {
			return false, false
		}
		for i := range columns {
			var err error
			if _, buf, err = b.read(f, i, buf); err != nil {
				return false, false
			}
		}
		end = next
	}
	return false, true
}

// readIndex reads all of an index.
func readIndex(f durable.File, size int64) (*state, error) {
	sn, err := readSnapshot(f, size)
	if err != nil {
		return nil, err
	}
	b := make([]byte, size-sn.log)
	if _, err := readAtFull(f, b, sn.log); err != nil {
		return nil, err
	}
	e := sn.st.edit()
	if _, err := e.replay(b); err != nil {
		return nil, err
	}
	st := e.done()
	for _, c := range st.chunks {
		if _, err := c.names.bytes(); err != nil {
			return nil, err
		}
	}
	return st, nil
}

// ceiling compares the MODSEQ with what the uidlist has reserved.
func (k *folderCheck) ceiling(st *state) {
	l := k.list
	if l == nil || l.Validity != st.validity || st.modseq <= l.Ceiling {
		return
	}
	k.add(problem{
		Finding: Finding{
			Path: filepath.Join(k.m.control, maildir.UIDListName), Kind: "modseq-ceiling", Serious: true,
			What:   fmt.Sprintf("the index has MODSEQ %d, reserved are %d: the list is an old copy", st.modseq, l.Ceiling),
			Remedy: "reserves more",
		},
		mend: true,
	})
}

// differs compares the index with files and uidlist.
func (k *folderCheck) differs(st *state) string {
	if st.n != len(k.files) {
		return fmt.Sprintf("it has %d messages and the folder %d", st.n, len(k.files))
	}
	if k.list.Validity != st.validity {
		return fmt.Sprintf("it has UIDVALIDITY %d and the list of UIDs %d", st.validity, k.list.Validity)
	}
	uids := make(map[string]uint32, len(k.list.Entries))
	for i := range k.list.Entries {
		uids[k.list.Entries[i].Base] = k.list.Entries[i].UID
	}
	for _, c := range st.chunks {
		for i := range c.recs {
			r := &c.recs[i]
			base, err := c.base(r)
			if err != nil {
				return err.Error()
			}
			name, err := c.file(nil, r)
			if err != nil {
				return err.Error()
			}
			f, ok := k.files[base]
			switch {
			case !ok:
				return fmt.Sprintf("the message with UID %d is not there", r.uid)
			case f.name != string(name) || f.sub != (look{bits: r.bits}).sub():
				return fmt.Sprintf("the message with UID %d has other flags", r.uid)
			case uids[base] != r.uid:
				return fmt.Sprintf("the message with UID %d has UID %d in the list", r.uid, uids[base])
			}
		}
	}
	return ""
}

// wrongSize notes a message whose size is told wrong.
func (k *folderCheck) wrongSize(path, base, what string) {
	if _, ok := k.wires[base]; ok {
		return
	}
	k.wires[base] = -1
	k.add(problem{
		Finding: Finding{Path: path, Kind: "size", Serious: true, What: what, Remedy: "the right size goes into the list of UIDs, which counts more than the name"},
		mend:    true,
	})
}

// sizes reads messages: those whose names are wrong about what is stored, and with Read all.
func (k *folderCheck) sizes(ctx context.Context) error {
	listed := map[string]int64{}
	if k.list != nil {
		for i := range k.list.Entries {
			if e := &k.list.Entries[i]; e.Wire >= 0 {
				listed[e.Base] = e.Wire
			}
		}
	}
	for done, base := range slices.Sorted(maps.Keys(k.files)) {
		f := k.files[base]
		_, wrong := k.wires[base]
		if !wrong && !k.o.Read {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if k.o.Progress != nil {
			k.o.Progress(k.m.name, done, len(k.files))
		}
		wire, err := k.wireSizeOf(f)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			k.add(problem{Finding: Finding{Path: f.path(k.m), Kind: "unreadable", Serious: true, What: err.Error(), Remedy: "nothing; look at its owner and at the disk"}})
			continue
		}
		told, ok := listed[base]
		if !ok {
			_, told, _, ok = maildir.Name{Base: base}.Sizes()
		}
		switch {
		case !ok && wrong: // the name has no other size
			k.wires[base] = wire
			continue
		case !ok:
			continue
		case told == wire:
			k.settled(base, f)
			continue
		}
		k.wrongSize(f.path(k.m), base, fmt.Sprintf("clients are told %d octets, and get %d", told, wire))
		k.wires[base] = wire
	}
	return nil
}

// settled takes a finding back: the uidlist puts right what the name says.
func (k *folderCheck) settled(base string, f messageFile) {
	if _, ok := k.wires[base]; !ok {
		return
	}
	delete(k.wires, base)
	for i, p := range k.found {
		if p.Kind == "size" && p.Path == f.path(k.m) {
			k.found = append(k.found[:i], k.found[i+1:]...)
			return
		}
	}
}

func (k *folderCheck) wireSizeOf(f messageFile) (int64, error) {
	body, err := k.m.openFile(f.sub, f.name)
	if err != nil {
		return 0, err
	}
	n, _, err := message.WireSize(body)
	return n, errors.Join(err, body.Close())
}
