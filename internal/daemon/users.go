package daemon

import (
	"os/user"
	"strconv"
)

// UIDs looks users up by name; numbers are taken as they are.
func UIDs(names []string) ([]int, error) {
	var out []int
	for _, name := range names {
		n, err := strconv.Atoi(name)
		if err != nil {
			u, err := user.Lookup(name)
			if err != nil {
				return nil, err
			}
			if n, err = strconv.Atoi(u.Uid); err != nil {
				return nil, err
			}
		}
		out = append(out, n)
	}
	return out, nil
}
