package accounts

import (
	"context"
	"os/exec"
	"slices"
	"strconv"
	"strings"
)

// maxGroups bounds the groups of one user, as the kernels that have the lowest limit do not.
const maxGroups = 1024

// parseGroup reads group(5): the groups that name a user as a member.
func parseGroup(_, data string, _ uint32) (map[string][]int, error) {
	t := map[string][]int{}
	eachLine(data, func(_ int, line string) {
		f := strings.Split(line, ":")
		if len(f) < 4 || f[0] == "" || f[0][0] == '+' || f[0][0] == '-' {
			return
		}
		gid, err := strconv.ParseUint(f[2], 10, 31)
		if err != nil {
			return
		}
		for m := range strings.SplitSeq(f[3], ",") {
			if m = strings.TrimSpace(m); m != "" {
				t[m] = append(t[m], int(gid))
			}
		}
	})
	return t, nil
}

// Groups lists the groups of a system user, gid, the one in its passwd line, first. Where getent
// cannot tell, they are those of the file: fewer groups are fewer rights. Group 0 is left out.
func (a *Accounts) Groups(ctx context.Context, name string, gid int) ([]int, error) {
	t, err := a.system.group.get(false)
	if err != nil {
		return nil, tempOrNil(err)
	}
	out := []int{gid}
	for _, g := range slices.Concat(t[name], a.system.groups(ctx, name)) {
		if g > 0 && !slices.Contains(out, g) && len(out) < maxGroups {
			out = append(out, g)
		}
	}
	return out, nil
}

// groups asks getent initgroups, which answers with the name and the numbers in one line.
func (s *systemUsers) groups(ctx context.Context, name string) []int {
	if s.getent == "" || !askable(name) {
		return nil
	}
	select {
	case s.forks <- struct{}{}:
		defer func() { <-s.forks }()
	case <-ctx.Done():
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, getentTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.getent, "initgroups", name)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C"}
	b, err := cmd.Output()
	f := strings.Fields(string(b))
	if err != nil || len(f) == 0 || f[0] != name {
		return nil
	}
	var out []int
	for _, s := range f[1:] {
		if g, err := strconv.ParseUint(s, 10, 31); err == nil {
			out = append(out, int(g))
		}
	}
	return out
}
