package accounts

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"pennypost/internal/envelope"
)

// Fault is an alias whose mail does not arrive.
type Fault struct {
	Alias string
	What  string
}

// AliasFaults follows all aliases and reports include files that cannot be read, and aliases
// that lead back to themselves where no mailbox has their name.
func (a *Accounts) AliasFaults(ctx context.Context) ([]Fault, error) {
	w := walker{a: a, ctx: ctx, seen: map[*Alias]bool{}}
	for _, f := range a.aliases {
		t, err := f.get(false)
		if err != nil {
			return nil, err
		}
		if t == nil {
			continue
		}
		all := make([]*Alias, 0, len(t.byKey))
		for _, al := range t.byKey {
			all = append(all, al)
		}
		slices.SortFunc(all, func(x, y *Alias) int { return cmp.Compare(x.Name, y.Name) })
		for _, al := range all {
			if err := w.alias(al); err != nil {
				return nil, err
			}
		}
	}
	return w.faults, nil
}

// walker goes through the aliases, depth first.
type walker struct {
	a      *Accounts
	ctx    context.Context
	path   []*Alias // those being followed
	seen   map[*Alias]bool
	faults []Fault
}

func (w *walker) alias(al *Alias) error {
	if w.seen[al] {
		return nil
	}
	w.seen[al] = true
	w.path = append(w.path, al)
	err := w.targets(al, al.Targets, 0)
	w.path = w.path[:len(w.path)-1]
	return err
}

func (w *walker) targets(al *Alias, ts []Target, depth int) error {
	for _, t := range ts {
		switch {
		case t.Kind == ToInclude && depth < 10:
			more, err := w.a.Include(t.Text)
			if err != nil {
				w.faults = append(w.faults, Fault{al.Name, fmt.Sprintf(":include:%s cannot be read: its mail is deferred", t.Text)})
				continue
			}
			if err := w.targets(al, more, depth+1); err != nil {
				return err
			}
		case t.Kind == ToAddress && t.Addr.Local != "" && (t.Addr.Domain == "" || w.a.IsLocal(t.Addr.Domain)):
			if err := w.address(t.Addr); err != nil {
				return err
			}
		}
	}
	return nil
}

// address follows a local address among the targets.
func (w *walker) address(addr envelope.Address) error {
	r, err := w.a.Lookup(w.ctx, addr)
	if err != nil || r.Kind != IsAlias {
		return err
	}
	i := slices.Index(w.path, r.Alias)
	if i < 0 {
		return w.alias(r.Alias)
	}
	// One that names itself means the mailbox of that name.
	if u, err := w.a.LookupUser(w.ctx, addr); err != nil || u.Kind == IsMailbox {
		return err
	}
	var names []string
	for _, al := range w.path[i:] {
		names = append(names, al.Name)
	}
	names = append(names, r.Alias.Name)
	w.faults = append(w.faults, Fault{r.Alias.Name, "leads back to itself (" + strings.Join(names, " -> ") + "): its mail is returned"})
	return nil
}
