//go:build !linux

package durable

func renameNewAt(n *Names, name string, to *Names, newname string) error {
	return n.fsys.RenameNew(n.join(name), to.join(newname))
}

func linkAt(n *Names, name string, to *Names, newname string) error {
	return n.fsys.Link(n.join(name), to.join(newname))
}

func removeAt(n *Names, name string) error { return n.fsys.Remove(n.join(name)) }
