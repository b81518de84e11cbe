package accounts

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Quota reads the limits of an account from its extra fields; 0 is none. They are Dovecot's
// quota_rule ("*:storage=1G:messages=1000") and, since its version 2.4, quota_storage_size and
// quota_message_count, all with or without "userdb_" before them.
func Quota(fields map[string]string) (octets, messages int64, err error) {
	field := func(name string) string {
		if v := fields["userdb_"+name]; v != "" {
			return v
		}
		return fields[name]
	}
	if v := field("quota_storage_size"); v != "" {
		if octets, err = parseSize(v, 1); err != nil {
			return 0, 0, err
		}
	}
	if v := field("quota_message_count"); v != "" {
		if messages, err = parseSize(v, 1); err != nil {
			return 0, 0, err
		}
	}
	rule := field("quota_rule")
	which, rule, ok := strings.Cut(rule, ":")
	if !ok || which != "*" && which != "?" {
		return octets, messages, nil // of one folder, which does not bind delivery to the inbox alone
	}
	for part := range strings.SplitSeq(rule, ":") {
		k, v, _ := strings.Cut(part, "=")
		switch k {
		case "storage":
			octets, err = parseSize(v, 1024)
		case "bytes":
			octets, err = parseSize(v, 1)
		case "messages":
			messages, err = parseSize(v, 1)
		case "ignore", "":
		default:
			err = fmt.Errorf("quota rule: %q is not known", part)
		}
		if err != nil {
			return 0, 0, err
		}
	}
	return octets, messages, nil
}

// parseSize reads "500", "500M" or "1 GB"; unit is what a bare number counts.
func parseSize(s string, unit int64) (int64, error) {
	bad := fmt.Errorf("%q is no size", s)
	num := strings.ToUpper(strings.TrimSpace(s))
	if num == "UNLIMITED" {
		return 0, nil
	}
	long := strings.TrimRight(num, "B")
	if long != num && long != "" && strings.ContainsAny(long[len(long)-1:], "0123456789 ") {
		unit = 1
	}
	num = strings.TrimSuffix(long, "I")
	if num == "" {
		return 0, bad
	}
	if i := strings.IndexByte("KMGT", num[len(num)-1]); i >= 0 {
		unit, num = 1<<(10*(i+1)), num[:len(num)-1]
	}
	n, err := strconv.ParseInt(strings.TrimSpace(num), 10, 64)
	if err != nil || n < 0 {
		return 0, bad
	}
	if n > math.MaxInt64/unit {
		return math.MaxInt64, nil
	}
	return n * unit, nil
}
